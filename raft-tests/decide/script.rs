//! The bench that scripts are played on: a few nodes as facts, changed by hand; what they decide is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use hasup::ha::assign::{Order, assign};
use hasup::ha::decide::decide;
use hasup::ha::durable::{DataState, Durable};
use hasup::ha::plan::Plan;
use hasup::ha::pulse::{PeerView, PulseView};
use hasup::ha::record::{Assignment, AssignmentReason, CommitSet, DataMember, Durability, Goals, MemberKind};
use hasup::ha::rules::Rules;
use hasup::ha::timing::Timing;
use hasup::ha::view::{AppliedRecord, ClusterView, Followed, GuardView, MemberView, NodeView, PostgresView};
use hasup::types::{BootTime, DataIncarnation, Generation, Lsn, NodeId, Timeline, WalPosition};

/// Returns the member that node `node` is in life `life` of its data.
pub fn member(node: u64, life: u64) -> DataMember {
    DataMember { node: NodeId(node), incarnation: DataIncarnation(life) }
}

/// Returns the set that waits for `k` of `nodes`, each in the first life of its data.
pub fn set(nodes: &[u64], k: u32) -> CommitSet {
    CommitSet { members: nodes.iter().map(|node| member(*node, 1)).collect(), k }
}

/// Returns a position.
pub fn at(timeline: u32, lsn: u64) -> WalPosition {
    WalPosition { timeline: Timeline(timeline), lsn: Lsn(lsn) }
}

/// Returns the instant `millis` into the script; all clocks agree here.
pub fn instant(millis: u64) -> BootTime {
    BootTime::from_millis(1_000_000 + millis)
}

/// A script: nodes as facts, and the text of what came of them.
pub struct Script {
    name: &'static str,
    text: String,
    now: u64,
    /// The nodes' views, by number; change them freely.
    pub nodes: BTreeMap<u64, NodeView>,
    /// What each node last decided.
    pub plans: BTreeMap<u64, Plan>,
    /// The record as committed, and its index.
    pub record: (Assignment, u64),
    /// Operators' wishes.
    pub goals: Goals,
    /// Raft's voters.
    pub raft_voters: Vec<BTreeSet<NodeId>>,
    /// What commits wait for.
    pub durability: Durability,
    /// Whether the leader has tried in vain to hand the leadership over.
    pub has_failed_to_hand_over: bool,
    /// For how long the leader has not heard the record's node.
    pub unheard_for: Duration,
    /// How often within the hour the role moved because a node gave it up in trouble.
    pub role_changes: u32,
    /// The members marked never to be made active.
    pub kept_back: BTreeSet<NodeId>,
}

impl Script {
    /// Begins a script with `nodes` data nodes as members, node 1 active under generation 5 on timeline 4, all well.
    pub fn new(name: &'static str, nodes: u64) -> Self {
        let all: BTreeSet<NodeId> = (1..=nodes).map(NodeId).collect();
        let standbys: Vec<u64> = (2..=nodes).collect();
        let commit_set =
            if nodes == 1 { CommitSet::none() } else { set(&standbys, u32::try_from(nodes / 2).unwrap_or(1)) };
        let record = Assignment {
            generation: Generation(5),
            node: NodeId(1),
            incarnation: DataIncarnation(1),
            promoted: Generation(5),
            timeline: Timeline(4),
            start: at(3, 90),
            why: AssignmentReason::Bootstrap,
            voter_sets: vec![all.clone()],
            commit_sets: vec![commit_set],
            opened: true,
            since_opened: Vec::new(),
        };
        let mut script = Self {
            name,
            text: String::new(),
            now: 0,
            nodes: BTreeMap::new(),
            plans: BTreeMap::new(),
            record: (record, 10),
            goals: Goals::default(),
            raft_voters: vec![all],
            durability: Durability::TwoNodes,
            has_failed_to_hand_over: false,
            unheard_for: Duration::ZERO,
            role_changes: 0,
            kept_back: BTreeSet::new(),
        };
        for node in 1..=nodes {
            script.join(node);
            if node == 1 {
                script.make_primary(1, 5, 4, 90);
            } else {
                script.streams(node, 1, 4, 100);
            }
        }
        script.quiet_round();
        script.quiet_round();
        script
    }

    /// Adds a node that runs, intact, and knows the record.
    pub fn join(&mut self, node: u64) {
        let now = self.time();
        let view = NodeView {
            now,
            me: NodeId(node),
            kind: MemberKind::Data,
            timing: Timing::default(),
            rules: Rules::default(),
            record: None,
            goals: Goals::default(),
            durable: Durable {
                acknowledged: self.record.0.generation,
                incarnation: DataIncarnation(1),
                data: DataState::Intact,
                ..Durable::default()
            },
            acted_under: Generation(0),
            resigning: None,
            lineage: None,
            rebuilt_from: None,
            pulse: PulseView { promise_end: now + Timing::default().promise(), ..PulseView::default() },
            guard: GuardView { is_present: true, has_processes: true, ..GuardView::default() },
            postgres: PostgresView {
                in_recovery: Some(true),
                has_standby_signal: true,
                position: Some(at(3, 90)),
                ..PostgresView::default()
            },
            job: None,
            is_stopping: false,
            newer_cluster: None,
            place: Default::default(),
            unfit: None,
            kept_back: Default::default(),
            troubles: Default::default(),
        };
        self.nodes.insert(node, view);
    }

    /// Returns the present instant.
    pub fn time(&self) -> BootTime {
        instant(self.now)
    }

    /// Lets time pass.
    pub fn wait(&mut self, millis: u64) {
        self.now += millis;
    }

    /// Writes a line of the story.
    pub fn tell(&mut self, line: &str) {
        let _ = writeln!(self.text, "\n# {:>5} ms: {line}", self.now);
    }

    /// Makes `node` the primary under `generation`, with a lease and names as its record says.
    pub fn make_primary(&mut self, node: u64, generation: u64, timeline: u32, from: u64) {
        let deadline = self.time() + Timing::default().lease;
        let set = self.record.0.commit_sets.last().cloned().unwrap_or_else(CommitSet::none);
        let standbys = set.members.iter().map(|member| (*member, Lsn(from + 10))).collect();
        let view = self.node(node);
        view.guard.armed = Some(Generation(generation));
        view.guard.deadline = deadline;
        view.acted_under = Generation(generation);
        view.pulse.lease = Some((Generation(generation), deadline));
        view.postgres = PostgresView {
            in_recovery: Some(false),
            has_standby_signal: true,
            position: Some(at(timeline, from + 10)),
            timeline: Some(Timeline(timeline)),
            promoted_at: Some(Lsn(from)),
            names: Some(hasup::ha::view::NamesInEffect {
                names: hasup::ha::view::SyncNames::Set(set),
                since: Lsn(from),
            }),
            standbys,
            current: Some(Lsn(from + 10)),
            has_written: true,
            ..PostgresView::default()
        };
    }

    /// Makes `node` stream from `source` and hold log up to `lsn`.
    pub fn streams(&mut self, node: u64, source: u64, timeline: u32, lsn: u64) {
        let generation = self.record.0.generation;
        let view = self.node(node);
        view.postgres.in_recovery = Some(true);
        view.postgres.follows = Some(Followed { node: NodeId(source), generation });
        view.postgres.has_receiver = true;
        view.postgres.is_streaming = true;
        view.postgres.position = Some(at(timeline, lsn));
    }

    /// Does to `node` what a cut of its receiver does.
    pub fn cut(&mut self, node: u64) {
        let postgres = &mut self.node(node).postgres;
        postgres.follows = None;
        postgres.has_receiver = false;
        postgres.is_streaming = false;
    }

    /// Returns a node's facts, to be changed.
    pub fn node(&mut self, node: u64) -> &mut NodeView {
        self.nodes.get_mut(&node).expect("the script speaks of nodes that it has")
    }

    /// Tells every node of `among` what each other of them last said, just now; and what the record says by now.
    fn exchange(&mut self, among: &[u64]) {
        let now = self.time();
        let hears: BTreeSet<NodeId> = among.iter().map(|node| NodeId(*node)).collect();
        let words: Vec<(u64, PeerView)> = among
            .iter()
            .filter_map(|node| {
                let mut report = self.plans.get(node)?.stance.report.clone();
                report.hears = hears.iter().copied().filter(|peer| peer.0 != *node).collect();
                Some((*node, PeerView { report, proved_at: now }))
            })
            .collect();
        let active = self.record.0.node.0;
        let end = now + Timing::default().promise();
        for node in among {
            if among.contains(&active) {
                // it asks, and is acknowledged
                self.node(*node).pulse.promise_end = end;
            }
            let (record, index) = self.record.clone();
            let goals = self.goals.clone();
            let kept_back = self.kept_back.clone();
            let view = self.node(*node);
            let same = view.record.as_ref().filter(|known| known.assignment.generation == record.generation);
            let applied_at = same.map_or(now, |known| known.applied_at);
            view.record = Some(AppliedRecord { assignment: record, index, applied_at });
            view.goals = goals;
            view.kept_back = kept_back;
            for (peer, word) in words.iter().filter(|(peer, _)| peer != node) {
                view.pulse.peers.insert(NodeId(*peer), word.clone());
            }
        }
    }

    /// Lets the active node's lease go on from now.
    pub fn extend(&mut self) {
        let deadline = self.time() + Timing::default().lease;
        let (active, generation) = (self.record.0.node.0, self.record.0.generation);
        let view = self.node(active);
        view.pulse.lease = Some((generation, deadline));
        view.guard.deadline = deadline;
    }

    fn quiet_round(&mut self) {
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        self.exchange(&all);
        for node in all {
            self.decide_silently(node);
        }
    }

    fn decide_silently(&mut self, node: u64) -> Plan {
        let now = self.time();
        let view = self.node(node);
        view.now = now;
        let plan = decide(view);
        view.resigning.clone_from(&plan.resigning);
        self.plans.insert(node, plan.clone());
        plan
    }

    /// Lets the nodes of `among` hear each other, and prints what each decides.
    pub fn tick(&mut self, among: &[u64]) {
        self.exchange(among);
        for node in among {
            let plan = self.decide_silently(*node);
            self.print(*node, &plan);
        }
    }

    fn print(&mut self, node: u64, plan: &Plan) {
        let stance = &plan.stance;
        let mut line = format!("node {node}: {}", plan.state);
        if let Some(generation) = stance.asks {
            let _ = write!(line, ", asks for {generation}");
        }
        if let Some((to, generation)) = stance.grants {
            let _ = write!(line, ", acknowledges node {to} under {generation}");
        }
        if stance.report.suspects.0 > 0 {
            let _ = write!(line, ", suspects {}", stance.report.suspects);
        }
        if let Some(stated) = plan.stated {
            let _ = write!(line, ", states {stated}");
        }
        if plan.serves_until.is_some() {
            line.push_str(", serves");
        }
        let _ = writeln!(self.text, "{line}");
        for step in &plan.steps {
            let _ = writeln!(self.text, "    does {step:?}");
        }
        for what in &plan.waiting_on {
            let _ = writeln!(self.text, "    waits for {what}");
        }
    }

    /// Has `leader` assign on what it hears from `among`; prints it, and commits what it orders about the record.
    pub fn lead(&mut self, leader: u64, among: &[u64]) {
        let now = self.time();
        let timing = Timing::default();
        let view = self.node(leader).clone();
        let members = self.nodes.keys().map(|node| {
            let is_here = among.contains(node);
            let peer = view.pulse.peers.get(&NodeId(*node)).map(|peer| peer.report.clone());
            let own = self.plans.get(node).map(|plan| plan.stance.report.clone());
            let report = if *node == leader || is_here { own.or(peer) } else { peer };
            let member = MemberView {
                kind: MemberKind::Data,
                priority: 100,
                nofailover: self.kept_back.contains(&NodeId(*node)),
                is_leaving: self.goals.removing.contains(&NodeId(*node)),
                report,
                passes_both_ways: is_here,
            };
            (NodeId(*node), member)
        });
        let (assignment, index) = self.record.clone();
        let cluster = ClusterView {
            now,
            me: NodeId(leader),
            timing: timing.clone(),
            rules: Rules::default(),
            goals: self.goals.clone(),
            members: members.collect(),
            durability: self.durability,
            raft_voters: self.raft_voters.clone(),
            raft_caught_up: among.iter().map(|node| NodeId(*node)).collect(),
            holder_unheard_for: self.unheard_for,
            has_failed_to_hand_over: self.has_failed_to_hand_over,
            resigned_for: Duration::ZERO,
            role_changes: self.role_changes,
            role_changes_max: 6,
            failed_promotion: BTreeMap::new(),
            not_streaming_since: BTreeMap::new(),
            record: Some(AppliedRecord { assignment, index, applied_at: now }),
        };
        let assigned = assign(&cluster);
        for what in &assigned.waiting_on {
            let _ = writeln!(self.text, "leader {leader} waits for {what}");
        }
        let Some(order) = assigned.order else {
            let _ = writeln!(self.text, "leader {leader} orders nothing");
            return;
        };
        let why = &assigned.why;
        let _ = writeln!(self.text, "leader {leader} {} ({})", why.step, why.rule);
        for fact in &why.facts {
            let _ = writeln!(self.text, "    as {fact}");
        }
        match order {
            Order::Record { expected, assignment } => {
                assert_eq!(expected, self.record.1);
                let _ = writeln!(self.text, "    {}", self.difference(&assignment));
                self.record = (*assignment, expected + 1);
            }
            Order::ChangeRaftVoters(voters) => self.raft_voters = vec![voters],
            Order::ClearSwitchover => self.goals.switchover = None,
            Order::TransferLeadership(_) => {}
        }
    }

    fn difference(&self, new: &Assignment) -> String {
        let voters: Vec<String> = new
            .voter_sets
            .iter()
            .map(|set| set.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            .collect();
        let sets: Vec<String> = new
            .commit_sets
            .iter()
            .map(|set| {
                let members: Vec<String> = set.members.iter().map(ToString::to_string).collect();
                format!("{} of [{}]", set.k, members.join(" "))
            })
            .collect();
        format!(
            "record {}: node {}, promoted under {} to timeline {}, voters [{}], commits wait for {}{}",
            new.generation,
            new.node,
            new.promoted,
            new.timeline,
            voters.join("] and ["),
            sets.join(" and "),
            if new.opened { ", opened" } else { "" }
        )
    }

    /// Compares the text with the golden file, or writes that where `HASUP_BLESS` is set.
    pub fn end(self) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("decide/golden/{}.txt", self.name));
        if std::env::var_os("HASUP_BLESS").is_some() {
            std::fs::write(&path, &self.text).expect("the golden file is written");
            return;
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            golden == self.text,
            "{} differs; look at it, and bless it with HASUP_BLESS=1 if it is right:\n{}",
            path.display(),
            self.text
        );
    }
}
