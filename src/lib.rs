//! hasup keeps a cluster of PostgreSQL alive by itself: one binary on each of three machines.
//!
//! The copies form one Raft group, which keeps a small replicated store. From it, and from what it sees of its own machine,
//! each node drives its own PostgreSQL. One node at a time is *active*: it holds a lease and runs the primary. When it dies,
//! hangs or is cut off, the others make one of themselves active, and nothing that was acknowledged is missing there.
//!
//! # The one idea
//!
//! What hasup *decides* is plain data in, plain data out; what it *does* is a thin layer around that. Who may be active, what
//! a node does next and why are pure functions of a view: [`ha::assign`] on the Raft leader, [`ha::decide`] on every node,
//! [`ha::pulse`] for leases. They read no clock, no disk and no network, so the simulator runs the very same code through
//! years of faults in minutes.
//!
//! ```text
//!              clients                 operators, balancers, monitoring
//!                 │                                  │
//!   ┌─ one node ──┼──────────────────────────────────┼─────────────────────────┐
//!   │             │            hasup run             ▼                         │
//!   │             │          ┌─────────────────────────────────────┐           │
//!   │             │          │ http: API, role endpoints, metrics  │           │
//!   │             │          │ node: observe → decide → act → tell │           │
//!   │             │          └──┬──────────┬───────┬──────────┬────┘           │
//!   │             ▼             │          │       │          │                │
//!   │        PostgreSQL ◄─ postgres      raft     peer      pulse ◄─ UDP ─►    │ other
//!   │             ▲                        │       ▲                           │ nodes
//!   │             │ starts, kills          ▼       └───────────── TLS ─────►   │
//!   │        hasup guard ◄── deadline   kv store                               │
//!   └──────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! # The map
//!
//! A module uses modules of lower levels only, and neighbours on a level never meet; a test holds the table. From below:
//!
//! | level | module | what it is |
//! |---|---|---|
//! | 0 | [`types`] | the vocabulary: small types that make mix-ups impossible |
//! | 1 | [`codec`], [`config`], [`ha`] | pure: bytes and back; text to checked settings; the brain |
//! | 2 | [`kv`], [`sys`] | the replicated store as pure data; clocks, files and child processes |
//! | 3 | [`telemetry`], [`tls`] | logs; authority, certificates and the settings of every connection |
//! | 4 | [`guard`], [`peer`], [`pulse`], [`raft`] | edges: who owns PostgreSQL; calls between nodes; datagrams; consensus |
//! | 5 | [`postgres`] | the database: settings, start, promotion, copies, rewinds |
//! | 6 | [`node`] | the running node: everything that waits |
//! | 7 | [`http`] | what others ask it |
//! | 8 | [`app`] | where the parts are put together |
//! | 9 | [`cli`], [`chaos`], [`demo`] | the command line; the harness that breaks clusters and judges them from outside |
//!
//! Deliberately absent: no lock service beside us, no second way to become active, no behaviour that depends on being in a
//! test, no state in the daemon that a restart would need and that is not on disk or in the guard.
//!
//! # Processes
//!
//! - `hasup run`, the daemon, thinks. It may be killed, restarted and upgraded; nobody's transaction fails of it.
//! - `hasup guard` owns PostgreSQL and holds the deadline of the lease. It kills PostgreSQL when nobody extends the deadline,
//!   so a daemon that hangs leaves no writer behind. When it dies itself, the kernel takes PostgreSQL with it.
//!
//! # Two kinds of leader
//!
//! The Raft *leader* orders the records of the store. The *active* node holds the lease. They are different offices, mostly
//! in different places: leadership is handed to a standby, so that the death of the active node needs no election first.
//!
//! # Protocol
//!
//! How the office changes hands. Rules are L1–L28, promises I1–I10; code and simulator cite them by these names. *Durable*
//! means on disk before the next step. A *bar* is a peer's durable refusal to help a generation of the active node any more.
//! A *commit set* (S, k) says that a commit waits for k of the standbys in S. The *record* (one, in Raft, changed only by
//! compare-and-set) names the active node, its generation, timeline, voter sets and commit sets.
//!
//! **Lease and fence**
//!
//! - **L1** The lease ends one span after the *sending* of the newest pulse that a majority acknowledged, on the boot-time
//!   clock. Only echoes of this life of the daemon and this generation count. The span travels in the pulse that asks and in the
//!   acknowledgement: what each node believes of the options at that moment changes nothing.
//! - **L2** A voter acknowledges only the newest record it has applied, and never a generation it barred. What is applied is on
//!   its disk before, as is the mark that it is committed: a power cut takes back nothing that was acted upon. It then promises to
//!   support nobody else for the span plus margin: an instant, which no option moves. Longer spans than are on its disk it does not
//!   acknowledge, and after its own start it assumes that it had promised that much.
//! - **L3** Pulses ask for the lease, and acknowledge it, only while the control loop is alive; a network thread alone keeps no
//!   office.
//! - **L4** The fence begins before the lease ends and is complete at its end: SIGQUIT, then SIGKILL. Never a polite stop.
//! - **L5** Word of a higher generation fences a former holder at once; a fence that began is finished.
//! - **L6** PostgreSQL has stopped when no process of it is left.
//! - **L7** Every end of the office is a resignation: fence complete, standby signal in place, durable, only then said.
//!
//! **Suspicion, bar, assignment**
//!
//! - **L8** A peer whose promise has ended suspects, which costs nothing. It bars when a majority suspects or a resignation is
//!   known; never alone.
//! - **L9** To bar: durable, then no WAL connection can begin, then the present one is gone, then read the position, then say it.
//! - **L10** The position said is the end of valid WAL on disk. Unsure means "not yet", never less.
//! - **L11** A generation follows when a majority of the voters barred the one before, *and* for every commit set so many of
//!   its members stated their position that none of its commits can be missing. A resignation spares the waiting, not these.
//!   Where commits wait for nobody because an operator said so (`durability=one_node`), the set still names who follows: a
//!   majority of those is enough, and the record says that what the former active node alone had acknowledged may be lost. It
//!   names only who streams and has held all log up to the change; who lags for long leaves it.
//! - **L12** Chosen is the furthest (timeline, LSN); then fitness, then priority. Priority never costs data. Where the furthest is
//!   not fit, one with less is chosen only if fewer than k of each set can hold what it lacks. Else a fit one first fetches that log,
//!   under the bar, from a furthest one that has barred too, cuts its receiver again and states anew ([`ha::decide`]). It reads under a
//!   name that no commit waits for, so no change of names shuts it out, states nothing meanwhile, and gives up what brings nothing; then
//!   the choice waits.
//! - **L13** The record reserves the new timeline's number, so a number has one maker and (timeline, LSN) orders all WAL.
//!   A person who promotes past hasup breaks that: two histories of one number are never rewound, but copied.
//! - **L14** A bar is lifted by a higher generation alone. A barred holder that lives on may be assigned again.
//! - **L15** Nothing is promoted without a lease of its own generation; the guard, which alone tells PostgreSQL to, refuses it.
//! - **L16** The new commit set comes from who answered; older records retire only when the new one has *opened*: k of its
//!   members hold all WAL up to the promotion.
//! - **L17** Who does not manage to promote in time resigns and stays out of the choice for a while. A primary whose daemon
//!   started anew and gets no connection is not one of those: it is given up only if it answers nobody, and others can take over.
//!
//! **Commit sets, rebuilds, guard, membership**
//!
//! - **L18** A set changes by way of both: record with old and new, in effect in PostgreSQL, caught up, record with the new. The
//!   active node's word that it is so names the record, by its place in the log, and counts for no other.
//! - **L19** A rewind or a copy makes a new data incarnation, which answers nothing until it is whole again. Nobody deletes data
//!   that a commit may still need.
//! - **L20** The guard holds the deadline and the list of what it kills. Services follow only a certain end of their former host.
//! - **L21** Only new acknowledgements extend the deadline. A primary without a guard is stopped.
//! - **L22** Voters change like commit sets, by records of their own generations, one change at a time, never the active node.
//! - **L23** One node is a majority of one. The third node makes two voters in one change. Even members beyond are spares.
//! - **L24** With its one standby gone, a witness cluster waits for nobody, and only its active node may succeed itself.
//! - **L25** After a power cut each node completes its bar, starts PostgreSQL as a standby and states its position.
//! - **L26** Recovery of a lost majority opens a new cluster generation; nodes of the old stay out until they join empty. Who hears of
//!   a higher one neither asks nor grants, ends what role it has, and waits for a person.
//! - **L27** A leader that does not hear the active node hands leadership to a voter that does.
//! - **L28** Writing in a minority begins only after a durable resignation and is no part of the cluster's history.
//!
//! **What is promised**, and checked after each step of the simulator
//!
//! - **I1** Every acknowledged write is in the WAL of every later primary. **I2** So is one acknowledged late by the old primary.
//! - **I3** No two nodes hold leases at once, unless a guest's clock was stopped. **I4** With k ≥ 1, I1 and I2 hold with any clocks.
//! - **I5** Once L11 is met, the old primary can gather no more commits. **I6** A barred or resigned generation never acts again.
//! - **I7** A timeline number has one maker. **I8** The record's sets overlap what PostgreSQL uses, at each instant.
//! - **I9** Active-only services run on one node. **I10** With a majority that hears each other and holds the data, writes return
//!   within the bound, and nobody stays barred.

// Unit tests write fixtures and spawn what they like; the bans are for what ships, which is linted without `test`.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod codec;
pub mod types;

pub mod config;
pub mod ha;
pub mod kv;

pub mod sys;

pub mod telemetry;
pub mod tls;

pub mod guard;
pub mod postgres;
pub mod pulse;
pub mod raft;

pub mod node;

pub mod http;
pub mod peer;

pub mod app;

pub mod chaos;
pub mod cli;
pub mod demo;
