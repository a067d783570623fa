//! Works off what operators and programs ask of the node through its [`Handle`](super::handle::Handle).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use super::error::{ErrorCode, HandleError};
use super::handle::{
    Answer, CaBundle, Done, EventInfo, KvChanged, KvEntries, KvEntry, NewToken, Order, Request, TokenInfo,
};
use super::names::name_of;
use super::options;
use super::propose::WriteError;
use crate::config::Secret;
use crate::ha::record::{Event, EventKind, Goals, Member, MemberKind, SwitchoverGoal, WhyRecord};
use crate::ha::timing::Timing;
use crate::kv::command::VALUE_BYTES_MAX;
use crate::kv::{Bytes, Command, KvCommand, Refusal, State, Watch};
use crate::peer::join::TokenText;
use crate::peer::{PeerRequest, PeerResponse};
use crate::sys::clock::wall_now;
use crate::tls::CertificateAuthority;
use crate::tls::config::MemberProtocol;
use crate::types::{Generation, NodeId};

/// How long a majority may take to confirm that a read is of the present.
const READ_LIMIT: Duration = Duration::from_secs(2);
const WRITE_LIMIT: Duration = Duration::from_secs(8);
/// How long an answer is held back until the node's status shows what was done.
const SHOW_LIMIT: Duration = Duration::from_secs(1);
/// How long an ordered switchover may take before the asker is told to look for himself.
const SWITCHOVER_LIMIT: Duration = Duration::from_secs(50);
/// How long it may wait before that for a standby to stream: one that was active until just now needs seconds.
const READY_LIMIT: Duration = Duration::from_secs(8);
/// The longest life of a join token: one that outlives its purpose is a key left in the door.
const TOKEN_TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Orders worked on at once: watches wait for minutes each.
const ORDERS_MAX: usize = 1024;

type Outcome = Result<Answer, HandleError>;

/// What an order for a switchover meets.
enum Readiness {
    /// It can end generation `from`; `to` is the node that was named. `holder` is the generation's node, unless that gave the role
    /// up already and so may have it again.
    Ready { from: Generation, holder: Option<NodeId>, to: Option<NodeId> },
    /// The node of this name is active already.
    Active(String),
    /// Not in this moment, and why.
    NotYet(String),
}

/// Works off `orders` until the last handle is gone. Each runs on its own, so that a watch holds nobody up.
pub(super) async fn serve(shared: Arc<Shared>, mut orders: mpsc::Receiver<Order>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv(), if running.len() < ORDERS_MAX => {
                let Some(Order { request, mut reply }) = order else { return };
                let shared = Arc::clone(&shared);
                running.spawn(async move {
                    let limit = Instant::now() + request.time_limit();
                    tokio::select! {
                        // nobody waits any more: reads stop here, and a write that was sent is on its way all the same
                        () = reply.closed() => {}
                        answer = shared.answer_and_show(request, limit) => {
                            let _ = reply.send(answer);
                        }
                    }
                });
            }
            Some(ended) = running.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
        }
    }
}

fn refused(message: impl Into<String>) -> HandleError {
    HandleError::new(ErrorCode::Refused, message)
}

impl From<WriteError> for HandleError {
    fn from(error: WriteError) -> Self {
        let code = match &error {
            WriteError::Conflict { .. } => ErrorCode::Conflict,
            WriteError::Refused(_) => ErrorCode::Refused,
            WriteError::NoLeader => ErrorCode::NoMajority,
            WriteError::Unknown => ErrorCode::Unknown,
        };
        Self::new(code, error.to_string())
    }
}

impl Shared {
    /// Answers, and for an order that this node's status shows, only once it does.
    async fn answer_and_show(&self, request: Request, limit: Instant) -> Outcome {
        let is_shown = !request.is_read()
            && !matches!(request, Request::Shutdown { .. } | Request::KvPut { .. } | Request::KvDelete { .. });
        let late = || {
            let message = "The node did not finish in time. It may have been done or not. Look at `hasup status`";
            HandleError::new(ErrorCode::Unknown, message)
        };
        let answer = timeout_at(limit, self.answer(request)).await.unwrap_or_else(|_| Err(late()));
        if is_shown && answer.is_ok() {
            // done all the same where it cannot be shown in time
            let _late = timeout(SHOW_LIMIT, self.show_what_was_done()).await;
        }
        answer
    }

    /// Waits until this node has applied what the leader has, and published it.
    async fn show_what_was_done(&self) {
        if self.read(true).await.is_err() {
            return;
        }
        let mut rounds = self.rounds.subscribe();
        // the round that goes on may have begun before
        for _ in 0..2 {
            self.news.notify_one();
            if rounds.changed().await.is_err() {
                return;
            }
        }
    }

    async fn answer(&self, request: Request) -> Outcome {
        match request {
            Request::Switchover { to } => self.switchover(to).await,
            Request::Promote { node, force } => self.promote(node, force).await,
            Request::NodesSet { name, priority, nofailover } => self.set_node(&name, priority, nofailover).await,
            Request::NodesRemove { name } => self.remove(&name).await,
            Request::Leave => {
                let name = self.name.to_string();
                self.remove(&name).await
            }
            Request::OptionsList => Ok(Answer::Options(options::list(&self.state().options))),
            Request::OptionsSet { changes } => self.set_options(&changes).await,
            Request::TokenCreate { ttl } => self.create_token(ttl).await,
            Request::TokenList => {
                let state = self.state();
                let info = |token: &crate::ha::record::JoinToken| TokenInfo {
                    id: token.id.clone(),
                    expires_at: token.expires_at,
                };
                Ok(Answer::Tokens(state.tokens.values().map(|token| info(token)).collect()))
            }
            Request::TokenRevoke { id } => {
                require_token(&*self.read(true).await?, &id)?;
                self.write(Command::RevokeToken { id: id.clone() }, None, WRITE_LIMIT).await?;
                Ok(Done::answer(format!("Join token {id} admits nobody any more")))
            }
            Request::History { limit } => Ok(Answer::History(self.history(limit))),
            Request::KvGet { key, stale } => {
                let state = self.read(!stale).await?;
                Ok(Answer::Kv(one_entry(&state, &key)))
            }
            Request::KvList { prefix, stale } => {
                let state = self.read(!stale).await?;
                Ok(Answer::Kv(entries_under(&state, &prefix)))
            }
            Request::KvPut { key, value, flags, cas } => {
                if value.len() > VALUE_BYTES_MAX {
                    // refused here: so long a value may be too long for a message to the leader, too
                    return Err(WriteError::Refused(Refusal::ValueLength { bytes: value.len() as u64 }).into());
                }
                let command = KvCommand::Put { key: Bytes::from(key), value: Bytes::from(value), flags, expected: cas };
                self.change_kv(command).await
            }
            Request::KvDelete { key, recurse, cas } => {
                let key = Bytes::from(key);
                let command = if recurse {
                    KvCommand::DeletePrefix { prefix: key }
                } else {
                    KvCommand::Delete { key, expected: cas }
                };
                self.change_kv(command).await
            }
            Request::KvWatch { key, prefix, index, wait } => self.watch_kv(key, prefix, index, wait).await,
            Request::CaExport => {
                let authority = self.authority()?;
                Ok(Answer::Ca(CaBundle { bundle: Secret::new(authority.export().to_string()) }))
            }
            Request::CaImport { bundle } => self.import_ca(&bundle).await,
            Request::Dsn => Ok(Answer::Dsn(self.dsn())),
            Request::Shutdown { handover } => {
                self.shutdown.send_replace(Some(handover));
                Ok(Done::answer("The node is stopping"))
            }
        }
    }

    /// Sets the goal once a standby is ready for it, and waits until another generation is open, or the goal was given up.
    async fn switchover(&self, to: Option<String>) -> Outcome {
        let limit = Instant::now() + READY_LIMIT;
        let mut rounds = self.rounds.subscribe();
        let (from, holder, target) = loop {
            match self.look_before_switchover(to.as_deref())? {
                Readiness::Ready { from, holder, to } => break (from, holder, to),
                Readiness::Active(name) => return Ok(Done::answer(format!("{name} is active already"))),
                // it may be coming back from the last one
                Readiness::NotYet(why) => match timeout_at(limit, rounds.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return Err(refused(why)),
                },
            }
        };
        let why = WhyRecord {
            facts: vec![format!(
                "an operator asked for a switchover{}",
                to.map(|to| format!(" to {to}")).unwrap_or_default()
            )],
            rule: "an operator's order".to_owned(),
            step: format!("ends generation {from} in order"),
        };
        let event = self.event(EventKind::SwitchoverOrdered, from, why);
        let goal = SwitchoverGoal { from, to: target };
        self.change_goals(Some(event), |goals| Goals { switchover: Some(goal.clone()), ..goals.clone() }).await?;
        let (node, generation) = self.wait_for_handover(from).await?;
        let name = name_of(node, &self.state());
        if target.map_or(Some(node) != holder, |target| target == node) {
            return Ok(Done::answer(format!("{name} is active under generation {generation}")));
        }
        Err(refused(format!(
            "The role was handed over and did not come to the node that it was meant for: {name} is active under generation {generation}. \
             The cluster works. `hasup history` tells why; then try again"
        )))
    }

    /// Tells whether a switchover, to the named node or to any, could begin now. What no wait can change is refused.
    fn look_before_switchover(&self, to: Option<&str>) -> Result<Readiness, HandleError> {
        let state = self.state();
        let Some(record) = state.assignment.as_ref().map(|record| &record.value) else {
            return Err(refused("The cluster has no active node yet. Nothing was done"));
        };
        let target = to.map(|name| find(&state, name)).transpose()?;
        if let Some(Member { name, .. }) = target.filter(|member| member.kind == MemberKind::Witness) {
            return Err(refused(format!(
                "{name} is a witness and holds no PostgreSQL. Nothing was done. Name a data node"
            )));
        }
        let pulse = self.pulses.view();
        let now = crate::sys::clock::boot_now();
        let timing = Timing::from_options(&state.options);
        let own = self.plan.borrow().stance.report.clone();
        let heard = |node: NodeId| {
            if node == self.me {
                Some(own.clone())
            } else {
                pulse.peers.get(&node).filter(|peer| peer.is_fresh(now, &timing)).map(|peer| peer.report.clone())
            }
        };
        // the role is nobody's: the order says who is to have it, and is all that is waited for where it was given up too often
        let is_free = heard(record.node).is_some_and(|report| report.resigned >= record.generation);
        let candidates = candidates(&state, (!is_free).then_some(record.node), target)?;
        if is_free {
            let unfit = target.filter(|member| !heard(member.id).is_some_and(|report| report.is_fit));
            if let Some(Member { name, .. }) = unfit {
                return Ok(Readiness::NotYet(format!(
                    "{name} cannot be made active: it is not heard, or its PostgreSQL does not run. Nothing was done. Name another \
                     node, or see `hasup status` on {name}"
                )));
            }
            let to = target.map(|member| member.id);
            return Ok(Readiness::Ready { from: record.generation, holder: None, to });
        }
        if let Some(Member { name, .. }) = target.filter(|member| member.id == record.node) {
            return Ok(Readiness::Active(name.to_string()));
        }
        if !record.opened {
            return Ok(Readiness::NotYet(
                "The active node is only just coming up. Nothing was done. Wait until `hasup status` shows it active"
                    .to_owned(),
            ));
        }
        let streaming =
            heard(record.node).and_then(|report| report.active).map(|active| active.streaming).unwrap_or_default();
        let is_ready = |node: NodeId| {
            streaming.iter().any(|member| member.node == node) && heard(node).is_some_and(|report| report.is_fit)
        };
        if candidates.iter().any(|member| is_ready(member.id)) {
            return Ok(Readiness::Ready {
                from: record.generation,
                holder: Some(record.node),
                to: target.map(|member| member.id),
            });
        }
        let why = match target {
            Some(Member { name, .. }) => format!(
                "{name} does not stream from the active node, or is not fit, so it cannot take over without a gap. Nothing was \
                 done. See `hasup status`, and wait until it streams"
            ),
            None => {
                "No standby streams from the active node and is fit. Nothing was done. See `hasup status`".to_owned()
            }
        };
        // who is not heard does not come within seconds
        if candidates.iter().any(|member| heard(member.id).is_some()) {
            Ok(Readiness::NotYet(why))
        } else {
            Err(refused(why))
        }
    }

    /// Changes what the leader is to bring about.
    async fn change_goals(&self, event: Option<Event>, change: impl Fn(&Goals) -> Goals) -> Result<(), WriteError> {
        let command = |state: &State| {
            let goals = change(&state.goals.value);
            Ok((Command::SetGoals { expected: Some(state.goals.index), goals }, event.clone(), ()))
        };
        self.write_over(command, WRITE_LIMIT).await
    }

    /// Waits until a generation after `from` is open; returns its node and number.
    async fn wait_for_handover(&self, from: Generation) -> Result<(NodeId, Generation), HandleError> {
        let mut states = self.consensus.state();
        let over = states.wait_for(|applied| {
            let record = applied.state.assignment.as_ref();
            record.is_some_and(|record| record.value.promoted > from && record.value.opened)
        });
        match tokio::time::timeout(SWITCHOVER_LIMIT, over).await {
            Ok(Ok(applied)) => {
                let record = applied.state.assignment.as_ref();
                Ok(record.map(|record| (record.value.node, record.value.generation)).unwrap_or_default())
            }
            Ok(Err(_)) => Err(HandleError::new(
                ErrorCode::Unknown,
                "The node stopped meanwhile. Look at `hasup status` on another",
            )),
            Err(_) => Err(HandleError::new(
                ErrorCode::Unknown,
                "The switchover was ordered and is not finished. `hasup status` tells what it waits for",
            )),
        }
    }

    async fn promote(&self, node: String, force: bool) -> Outcome {
        if force {
            return Err(refused(
                "A forced promotion is not offered: an assignment follows by itself once a majority and the data allow it. Nothing was \
                 done. `hasup status` tells what is waited for",
            ));
        }
        self.switchover(Some(node)).await
    }

    async fn set_node(&self, name: &str, priority: Option<u32>, nofailover: Option<bool>) -> Outcome {
        let command = |state: &State| {
            let before = find(state, name)?;
            let mut member = before.clone();
            member.priority = priority.unwrap_or(member.priority);
            member.nofailover = nofailover.unwrap_or(member.nofailover);
            let told = |member: &Member| format!("priority {} and nofailover {}", member.priority, member.nofailover);
            let done = format!("{name} has {}", told(&member));
            let fact = (before != &member).then(|| format!("{done}, before it had {}", told(before)));
            let step = format!("changes how {name} is treated");
            let event = self.event_of_setting(EventKind::MemberChanged, fact.into_iter().collect(), step);
            Ok::<_, HandleError>((Command::ChangeMember { expected: state.members_index, member }, event, done))
        };
        Ok(Done::answer(self.write_over(command, WRITE_LIMIT).await?))
    }

    async fn remove(&self, name: &str) -> Outcome {
        let state = self.state();
        let id = find(&state, name)?.id;
        let is_active = |state: &State| state.assignment.as_ref().is_some_and(|record| record.value.node == id);
        if is_active(&state) {
            return Err(refused(format!(
                "{name} is active and was not removed. Run `hasup switchover` first, then repeat this"
            )));
        }
        let why = WhyRecord {
            facts: vec![format!("an operator asked to remove {name}")],
            rule: "an operator's order".to_owned(),
            step: format!("removes {name}"),
        };
        self.change_goals(None, |goals| goals.removing(id)).await?;
        // the leader takes the node out of voters and commit set first; then nothing counts on it any more
        let mut states = self.consensus.state();
        let is_out = states.wait_for(|applied| {
            applied.state.assignment.as_ref().is_none_or(|record| {
                let votes = record.value.voter_sets.iter().any(|set| set.contains(&id));
                let holds =
                    record.value.commit_sets.iter().any(|set| set.members.iter().any(|member| member.node == id));
                !votes && !holds
            })
        });
        let waited = tokio::time::timeout(Duration::from_secs(30), is_out).await.is_ok();
        if !waited {
            return Err(HandleError::new(
                ErrorCode::Unknown,
                format!(
                    "{name} still votes or holds commits; the leader goes on taking it out. See `hasup status`, then repeat this"
                ),
            ));
        }
        // taking it out has made generations of its own
        let generation = self.state().assignment.as_ref().map(|record| record.value.generation).unwrap_or_default();
        let event = self.event(EventKind::MemberRemoved, generation, why);
        self.write(Command::RemoveMember { id }, Some(event), WRITE_LIMIT).await?;
        // it is out already: a goal that stays behind is about nobody, and the leader may have dropped it first
        if let Err(error) = self.change_goals(None, |goals| goals.without(id)).await {
            tracing::info!(%error, "the wish to remove a node that is out is still noted");
        }
        Ok(Done::answer(format!(
            "{name} is no member any more. Empty its data directory (`hasup destroy` there) before it joins again"
        )))
    }

    async fn set_options(&self, changes: &BTreeMap<String, String>) -> Outcome {
        let command = |state: &State| {
            let changed = options::apply(&state.options, changes)
                .map_err(|error| HandleError::new(ErrorCode::BadRequest, error.to_string()))?;
            let differ = options::changes(&state.options, &changed);
            let event = self.event_of_setting(EventKind::OptionsChanged, differ, "changes the options".to_owned());
            let command = Command::SetOptions { expected: Some(state.options.index), options: changed.clone() };
            Ok::<_, HandleError>((command, event, changed))
        };
        let changed = self.write_over(command, WRITE_LIMIT).await?;
        Ok(Answer::Options(options::list(&changed)))
    }

    async fn create_token(&self, ttl: Duration) -> Outcome {
        if ttl > TOKEN_TTL_MAX {
            let message = "A join token lives for a year at the most; none was made. Make a new one when it is needed";
            return Err(HandleError::new(ErrorCode::BadRequest, message));
        }
        let authority = self.authority()?;
        let internal = |error: crate::tls::TlsError| HandleError::new(ErrorCode::Internal, error.to_string());
        let fingerprint = authority.fingerprint().map_err(internal)?;
        let (text, token) = TokenText::generate(fingerprint, wall_now() + ttl).map_err(internal)?;
        let (id, expires_at) = (token.id.clone(), token.expires_at);
        self.write(Command::PutToken { token }, None, WRITE_LIMIT).await?;
        Ok(Answer::Token(NewToken { id, join_token: Secret::new(text.expose().to_string()), expires_at }))
    }

    fn authority(&self) -> Result<CertificateAuthority, HandleError> {
        let state = self.state();
        let trust = state
            .trust
            .as_ref()
            .ok_or_else(|| refused("The cluster has no certificate authority yet. Try again shortly"))?;
        CertificateAuthority::open(&trust.value, &self.cluster_secret)
            .map_err(|error| HandleError::new(ErrorCode::Internal, error.to_string()))
    }

    async fn import_ca(&self, bundle: &Secret) -> Outcome {
        let bad = |error: crate::tls::TlsError| HandleError::new(ErrorCode::BadRequest, error.to_string());
        let command = |state: &State| {
            let expected = state.trust.as_ref().map_or(0, |trust| trust.index);
            let older = state.trust.as_ref().map(|trust| trust.value.ca_certificates.clone()).unwrap_or_default();
            let authority = CertificateAuthority::import(bundle.expose()).map_err(bad)?.trusting_also(&older);
            let trust = authority.to_trust(&self.cluster_secret).map_err(bad)?;
            Ok::<_, HandleError>((Command::SetTrust { expected, trust }, None, ()))
        };
        self.write_over(command, WRITE_LIMIT).await?;
        Ok(Done::answer(
            "The authority was imported; the ones before stay trusted. Nodes renew their certificates from it as they come due",
        ))
    }

    fn history(&self, limit: u32) -> Vec<EventInfo> {
        let state = self.state();
        let skip = state.events.len().saturating_sub(limit as usize);
        let info = |stored: &crate::kv::StoredEvent| EventInfo {
            id: stored.id.index,
            node: name_of(stored.event.by, &state),
            event: stored.event.clone(),
        };
        state.events.iter().skip(skip).map(|stored| info(stored)).collect()
    }

    /// Returns the state: as this node has it, or with every write acknowledged before in it.
    pub(super) async fn read(&self, consistent: bool) -> Result<Arc<State>, HandleError> {
        if !consistent {
            return Ok(self.state());
        }
        let no_leader = || {
            HandleError::new(
                ErrorCode::NoMajority,
                "No leader confirmed that this is the present state. Nothing was read. Try again, or read what this node has, by `--stale`",
            )
        };
        let leader = self.consensus.leadership().borrow().leader.ok_or_else(no_leader)?;
        let index = if leader == self.me {
            self.consensus.read_index(READ_LIMIT).await.map_err(|_| no_leader())?
        } else {
            match self.peers.call(leader, MemberProtocol::Raft, PeerRequest::ReadIndex, READ_LIMIT).await {
                Ok(PeerResponse::ReadIndex { index }) => index,
                _ => return Err(no_leader()),
            }
        };
        let mut states = self.consensus.state();
        let applied = states.wait_for(|applied| applied.index >= index).await.map_err(|_| no_leader())?;
        Ok(Arc::clone(&applied.state))
    }

    async fn change_kv(&self, command: KvCommand) -> Outcome {
        match self.write(Command::Kv(command), None, WRITE_LIMIT).await? {
            crate::kv::Reply::Applied { index } => Ok(Answer::KvChanged(KvChanged { index })),
            other => {
                Err(HandleError::new(ErrorCode::Internal, format!("The store gave an unexpected answer: {other:?}")))
            }
        }
    }

    async fn watch_kv(&self, key: String, prefix: bool, index: u64, wait: Duration) -> Outcome {
        let name = Bytes::from(key.clone());
        let watch = if prefix { Watch::Prefix(name) } else { Watch::Key(name) };
        let mut states = self.consensus.state();
        let changed = states.wait_for(|applied| applied.state.changed_since(&watch, index));
        // the present state is the answer in either case
        let _ = tokio::time::timeout(wait, changed).await;
        let state = self.state();
        Ok(Answer::Kv(if prefix { entries_under(&state, &key) } else { one_entry(&state, &key) }))
    }
}

fn find<'a>(state: &'a State, name: &str) -> Result<&'a Member, HandleError> {
    state.member_named(name).ok_or_else(|| {
        let names: Vec<String> = state.members.values().map(|member| member.name.to_string()).collect();
        let text = format!("There is no node {name}; members are {}. Nothing was done", names.join(", "));
        HandleError::new(ErrorCode::NotFound, text)
    })
}

/// Returns who may take over from `holder`: the named node, else every other one that the mark `nofailover` does not keep back. Where
/// marks leave nobody, no wait helps: the role would be given up and come to a node that nobody meant, or to none.
fn candidates<'a>(
    state: &'a State,
    holder: Option<NodeId>,
    target: Option<&'a Member>,
) -> Result<Vec<&'a Member>, HandleError> {
    let unmark = |name: &str| format!("`hasup nodes set {name} nofailover=false` takes the mark away");
    if let Some(member) = target {
        if member.nofailover && Some(member.id) != holder {
            let (name, unmark) = (&member.name, unmark(member.name.as_str()));
            return Err(refused(format!(
                "{name} is marked nofailover and is not made active. Nothing was done. {unmark}"
            )));
        }
        return Ok(vec![member]);
    }
    let members = state.members.values().map(AsRef::as_ref);
    let others: Vec<&Member> =
        members.filter(|member| Some(member.id) != holder && member.kind != MemberKind::Witness).collect();
    let able: Vec<&Member> = others.iter().copied().filter(|member| !member.nofailover).collect();
    if able.is_empty() && !others.is_empty() {
        let unmark = unmark("NODE");
        return Err(refused(format!(
            "Every node that could take over is marked nofailover. Nothing was done. {unmark}"
        )));
    }
    Ok(able)
}

/// A mistyped id must not pass for done: the token that was meant would go on admitting nodes.
fn require_token(state: &State, id: &str) -> Result<(), HandleError> {
    if state.tokens.contains_key(id) {
        return Ok(());
    }
    let ids: Vec<&str> = state.tokens.keys().map(AsRef::as_ref).collect();
    let known = if ids.is_empty() { "there are none".to_owned() } else { format!("there are {}", ids.join(", ")) };
    let text = format!(
        "There is no join token {id}. Nothing was revoked. `hasup token list` lists the ids that count; {known}. The id is the part \
         of a token between the first two hyphens"
    );
    Err(HandleError::new(ErrorCode::NotFound, text))
}

fn to_entry(key: &Bytes, entry: &crate::kv::Entry) -> KvEntry {
    KvEntry {
        key: String::from_utf8_lossy(key).into_owned(),
        value: entry.value.to_vec(),
        flags: entry.flags,
        create_index: entry.create_index,
        modify_index: entry.modify_index,
    }
}

fn one_entry(state: &State, key: &str) -> KvEntries {
    let name = Bytes::from(key.to_owned());
    let entries = state.table.get(key.as_bytes()).map(|entry| to_entry(&name, entry)).into_iter().collect();
    KvEntries { index: state.table.key_index(key.as_bytes()), entries }
}

fn entries_under(state: &State, prefix: &str) -> KvEntries {
    let entries = state.table.list(prefix.as_bytes()).map(|(key, entry)| to_entry(key, entry)).collect();
    KvEntries { index: state.table.prefix_index(prefix.as_bytes()), entries }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, nofailover: bool) -> Member {
        Member {
            id: NodeId(id),
            name: format!("n{id}").parse().unwrap(),
            kind: MemberKind::Data,
            peer_addresses: vec![format!("10.0.0.{id}:7400")],
            api_address: format!("10.0.0.{id}:7401"),
            postgres_host: format!("10.0.0.{id}"),
            postgres_port: 5432,
            pulse_key: [1; 32],
            priority: 100,
            nofailover,
            version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn a_switchover_gives_up_no_role_for_a_node_that_is_marked_nofailover() {
        let mut state = State::default();
        for (id, nofailover) in [(1, false), (2, true), (3, false)] {
            state.members.insert(NodeId(id), Arc::new(member(id, nofailover)));
        }
        let ask = |state: &State, holder, to: Option<&str>| {
            let found = candidates(state, holder, to.map(|name| find(state, name).unwrap()));
            found
                .map(|members| members.iter().map(|member| member.id.0).collect::<Vec<u64>>())
                .map_err(|error| error.to_string())
        };
        let n1 = Some(NodeId(1));
        assert_eq!(ask(&state, n1, None), Ok(vec![3]));
        assert_eq!(ask(&state, n1, Some("n3")), Ok(vec![3]));
        let why = ask(&state, n1, Some("n2")).unwrap_err();
        assert!(
            why.contains("n2 is marked nofailover") && why.contains("hasup nodes set n2 nofailover=false"),
            "{why}"
        );
        assert_eq!(ask(&state, Some(NodeId(2)), Some("n2")), Ok(vec![2]), "it is active, mark or not");
        assert!(ask(&state, None, Some("n2")).is_err(), "it gave the role up");
        state.members.remove(&NodeId(3));
        let why = ask(&state, n1, None).unwrap_err();
        assert!(why.contains("Every node that could take over is marked nofailover"), "{why}");
        assert_eq!(ask(&state, None, None), Ok(vec![1]), "the role is nobody's: who had it may have it again");
    }
}
