//! What no node knows: everything that happened, and which promise it broke.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use hasup::kv::{Command, KvCommand, Reply};
use hasup::raft::types::{Entry, Vote};
use hasup::types::NodeId;
use openraft::EntryPayload;
use tokio::time::Instant;

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Broken {
    /// Its short name.
    pub rule: &'static str,
    /// What happened.
    pub what: String,
    /// When, in seconds of virtual time.
    pub at: f64,
}

/// A write or a read as its client saw it.
#[derive(Debug, Clone)]
pub struct Done {
    /// When it was asked.
    pub asked: Instant,
    /// When it was answered; `None` while its fate is unknown.
    pub answered: Option<Instant>,
    /// What it was.
    pub what: What,
}

/// The kinds of operations.
#[derive(Debug, Clone)]
pub enum What {
    /// A write by request id, with its answer.
    Write(u128, Option<Reply>),
    /// A read of `key` in the state after `index`.
    Read { index: u64, key: u8, value: Option<Vec<u8>> },
}

struct Committed {
    entry: Entry,
    hash: u64,
    by: NodeId,
}

/// A short hash without a dependency.
mod short {
    use std::hash::{DefaultHasher, Hasher};

    pub fn hash(bytes: &[u8]) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        hasher.finish()
    }
}

struct Known {
    began: Instant,
    leaders: BTreeMap<u64, (u64, NodeId)>,
    committed: BTreeMap<u64, Committed>,
    states: BTreeMap<u64, (NodeId, u64)>,
    done: Vec<Done>,
    broken: Option<Broken>,
    trace: Vec<String>,
    elections: usize,
}

/// Shared by everything in a run.
#[derive(Clone)]
pub struct Oracle(Arc<Mutex<Known>>);

impl Oracle {
    /// Returns one that knows nothing yet.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Known {
            began: Instant::now(),
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            states: BTreeMap::new(),
            done: Vec::new(),
            broken: None,
            trace: Vec::new(),
            elections: 0,
        })))
    }

    /// Notes something for the trace.
    pub fn note(&self, what: impl FnOnce() -> String) {
        let mut known = self.0.lock().unwrap();
        let at = known.began.elapsed();
        let text = format!("{:>10.4} {}", at.as_secs_f64(), what());
        known.trace.push(text);
    }

    /// Notes that promise `rule` is broken; the first one counts.
    pub fn broken(&self, rule: &'static str, what: String) {
        self.note(|| format!("BROKEN {rule}: {what}"));
        let mut known = self.0.lock().unwrap();
        let at = known.began.elapsed().as_secs_f64();
        known.broken.get_or_insert(Broken { rule, what, at });
    }

    /// Returns whether a promise is broken.
    pub fn is_broken(&self) -> bool {
        self.0.lock().unwrap().broken.is_some()
    }

    /// Node `by` writes `vote`: once it is committed, its holder leads the term.
    pub fn voted(&self, by: NodeId, vote: &Vote) {
        self.note(|| format!("node {by} votes {vote}"));
        if !vote.committed {
            return;
        }
        let (term, holder) = (vote.leader_id.term, vote.leader_id.voted_for);
        let former = {
            let mut known = self.0.lock().unwrap();
            let is_new = !known.leaders.contains_key(&term);
            known.elections += usize::from(is_new);
            *known.leaders.entry(term).or_insert((holder, by))
        };
        if former.0 != holder {
            let what = format!("nodes {} and {holder} lead in term {term}, say nodes {} and {by}", former.0, former.1);
            self.broken("R1", what);
        }
    }

    /// Node `by` holds `entry` to be committed.
    pub fn committed(&self, by: NodeId, entry: &Entry, bytes: &[u8]) {
        let (index, hash) = (entry.log_id.index, short::hash(bytes));
        let differs = {
            let mut known = self.0.lock().unwrap();
            match known.committed.get(&index) {
                None => {
                    known.committed.insert(index, Committed { entry: entry.clone(), hash, by });
                    None
                }
                Some(first) if first.hash == hash => None,
                Some(first) => Some(format!(
                    "entry {index} is {} for node {} and {} for node {by}, both committed",
                    first.entry.log_id, first.by, entry.log_id
                )),
            }
        };
        if let Some(what) = differs {
            self.broken("R2", what);
        }
    }

    /// Node `by` has this state after `index`.
    pub fn state(&self, by: NodeId, index: u64, bytes: &[u8]) {
        let hash = short::hash(bytes);
        let first = *self.0.lock().unwrap().states.entry(index).or_insert((by, hash));
        if first.1 != hash {
            self.broken("R4", format!("after entry {index} the states of nodes {} and {by} differ", first.0));
        }
    }

    /// Notes an operation.
    pub fn done(&self, done: Done) {
        self.0.lock().unwrap().done.push(done);
    }

    /// Returns the last index that any node held to be committed.
    pub fn last_committed(&self) -> u64 {
        self.0.lock().unwrap().committed.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// Judges the run when it is over: replays what is committed, and compares every answer with it.
    pub fn judge(&self) -> Verdict {
        let (history, done) = {
            let known = self.0.lock().unwrap();
            (Replay::of(&known.committed), known.done.clone())
        };
        if !self.is_broken()
            && let Err((rule, what)) = history.judge(done.clone())
        {
            self.broken(rule, what);
        }
        let mut known = self.0.lock().unwrap();
        Verdict {
            broken: known.broken.clone(),
            trace: std::mem::take(&mut known.trace),
            elections: known.elections,
            operations: done.iter().filter(|done| done.answered.is_some()).count(),
            entries: known.committed.len(),
        }
    }
}

/// What came of a run.
pub struct Verdict {
    /// The first broken promise.
    pub broken: Option<Broken>,
    /// The run as text.
    pub trace: Vec<String>,
    /// Terms that had a leader.
    pub elections: usize,
    /// Operations answered.
    pub operations: usize,
    /// Entries committed.
    pub entries: usize,
}

/// A second, plain reading of the log: what each request should have been told, and each key's values.
struct Replay {
    /// By request id: the index that decided it, and the answer.
    requests: BTreeMap<u128, (u64, Reply)>,
    /// By key: its values by the index that set them.
    values: BTreeMap<u8, BTreeMap<u64, Option<Vec<u8>>>>,
    whole: bool,
}

impl Replay {
    fn of(committed: &BTreeMap<u64, Committed>) -> Self {
        let mut replay = Self { requests: BTreeMap::new(), values: BTreeMap::new(), whole: true };
        let mut modified: BTreeMap<u8, u64> = BTreeMap::new();
        let mut before = committed.first_key_value().map_or(0, |(index, _)| *index);
        for (index, Committed { entry, .. }) in committed {
            replay.whole &= *index <= before + 1;
            before = *index;
            let EntryPayload::Normal(proposal) = &entry.payload else { continue };
            if replay.requests.contains_key(&proposal.request_id) {
                continue;
            }
            let (key, expected, value) = match &proposal.command {
                Command::Kv(KvCommand::Put { key, value, expected, .. }) => (key, expected, Some(value.to_vec())),
                Command::Kv(KvCommand::Delete { key, expected }) => (key, expected, None),
                _ => continue,
            };
            let Some(key) = key.first().copied() else { continue };
            let current = modified.get(&key).copied().unwrap_or(0);
            let reply = match expected {
                Some(expected) if *expected != current => Reply::Conflict { current },
                _ => {
                    match value {
                        Some(_) => modified.insert(key, *index),
                        None => modified.remove(&key),
                    };
                    replay.values.entry(key).or_default().insert(*index, value);
                    Reply::Applied { index: *index }
                }
            };
            replay.requests.insert(proposal.request_id, (*index, reply));
        }
        replay
    }

    fn judge(&self, mut done: Vec<Done>) -> Result<(), (&'static str, String)> {
        if !self.whole {
            return Err(("R2", "the committed log has a hole".to_owned()));
        }
        // Linearizable: whatever was asked after an answer stands behind it in the log.
        let mut answers: Vec<(Instant, u64)> = Vec::new();
        for done in &done {
            let index = match &done.what {
                What::Write(id, reply) => {
                    let decided = self.requests.get(id);
                    match (reply, decided) {
                        (None, _) => continue,
                        (Some(reply), None) => {
                            return Err(("R2", format!("request {id} was answered {reply:?} and is not in the log")));
                        }
                        (Some(reply), Some((index, expected))) if reply != expected => {
                            return Err((
                                "R3",
                                format!("request {id} got {reply:?}, and entry {index} is {expected:?}"),
                            ));
                        }
                        (Some(_), Some((index, _))) => *index,
                    }
                }
                What::Read { index, key, value } => {
                    let expected = self.values.get(key).and_then(|values| values.range(..=*index).next_back());
                    let expected = expected.and_then(|(_, value)| value.clone());
                    if expected != *value {
                        return Err(("R3", format!("key {key} after entry {index} reads {value:?}, not {expected:?}")));
                    }
                    *index
                }
            };
            if let Some(answered) = done.answered {
                answers.push((answered, index));
            }
        }
        answers.sort();
        let mut highest = 0;
        for answer in &mut answers {
            highest = highest.max(answer.1);
            answer.1 = highest;
        }
        done.sort_by_key(|done| done.asked);
        for done in &done {
            let before = answers.partition_point(|(answered, _)| *answered < done.asked);
            let Some((_, least)) = before.checked_sub(1).and_then(|at| answers.get(at)) else { continue };
            let index = match &done.what {
                What::Write(id, _) => match self.requests.get(id) {
                    Some((index, _)) => *index,
                    None => continue,
                },
                What::Read { index, .. } => *index,
            };
            if index < *least {
                let what = format!("{:?} stands at {index}, and {least} was answered before it was asked", done.what);
                return Err(("R3", what));
            }
        }
        Ok(())
    }
}
