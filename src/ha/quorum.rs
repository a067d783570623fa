//! Majorities of voters, and the data rule: whether those who answered hold every acknowledged commit between them.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{Assignment, CommitSet, DataMember, PriorAssignment};
use crate::types::{DataIncarnation, Generation, NodeId, WalPosition};

/// Returns how many of `total` are a majority.
pub fn majority_of(total: usize) -> usize {
    total / 2 + 1
}

/// Returns whether `agrees` holds for a majority of every set. No set, or an empty one, is no majority.
pub fn majority_of_every(sets: &[BTreeSet<NodeId>], mut agrees: impl FnMut(NodeId) -> bool) -> bool {
    !sets.is_empty()
        && sets.iter().all(|set| set.iter().filter(|node| agrees(**node)).count() >= majority_of(set.len()))
}

/// Returns how many more nodes may fail at once, whichever they are, and writes go on by themselves. `data_nodes` is how many members
/// hold data, `lives` tells who is heard, and `follows` whose data follows the active node.
pub fn losses_survived(
    record: &Assignment,
    data_nodes: usize,
    lives: impl Fn(NodeId) -> bool,
    follows: impl Fn(NodeId) -> bool,
) -> usize {
    let of_voters =
        |set: &BTreeSet<NodeId>| set.iter().filter(|node| lives(**node)).count().saturating_sub(majority_of(set.len()));
    let of_data = |set: &CommitSet| {
        let (members, k) = (set.members.len(), set.k as usize);
        let following = set.members.iter().filter(|member| follows(member.node)).count();
        if set.may_lose() {
            return (following + 1).saturating_sub(majority_of(members));
        }
        if k == 0 {
            return 0;
        }
        // the active node among the lost: enough of the rest hold every commit (L11)
        let replaced = (following + k).saturating_sub(members);
        // it stays, and k follow on; beside a witness, commits stop waiting for the one standby
        if data_nodes <= 2 { replaced } else { replaced.min(following.saturating_sub(k)) }
    };
    let voters = record.voter_sets.iter().map(of_voters).min().unwrap_or_default();
    let data = record.commit_sets.iter().map(of_data).min().unwrap_or_default();
    voters.min(data)
}

/// What a node stated about its data when it could no longer help the generation that is to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The life of its data.
    pub incarnation: DataIncarnation,
    /// Where its log ends.
    pub position: WalPosition,
    /// The highest generation of its own that it has resigned.
    pub resigned: Generation,
}

/// A commit set that the answers do not cover yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncovered {
    /// The generation of the record it belongs to.
    pub generation: Generation,
    /// The set.
    pub set: CommitSet,
    /// How many of its members answered.
    pub answered: usize,
}

/// The data rule of L11 for the record `current` and those before it that were never opened.
///
/// # Errors
///
/// The first set that the answers do not cover.
pub fn covers_every_commit(current: &Assignment, answers: &BTreeMap<NodeId, Answer>) -> Result<(), Uncovered> {
    let mut chain: Vec<PriorAssignment> = current.since_opened.clone();
    chain.push(current.to_prior());
    for (index, record) in chain.iter().enumerate() {
        if !record.opened && record.commit_sets.iter().all(|set| set.k == 0) {
            // promoted with a name that nobody bears until it is opened, so nothing was acknowledged under it (L15)
            continue;
        }
        if chain[index..].iter().any(|later| holder_answered(later, answers)) {
            continue;
        }
        for set in &record.commit_sets {
            let answered = set.members.iter().filter(|member| {
                answers.get(&member.node).is_some_and(|answer| answer.incarnation == member.incarnation)
            });
            let answered = answered.count();
            let enough = if set.may_lose() {
                answered >= majority_of(set.members.len())
            } else {
                set.k > 0 && answered + set.k as usize > set.members.len()
            };
            if !enough {
                return Err(Uncovered { generation: record.generation, set: set.clone(), answered });
            }
        }
    }
    Ok(())
}

/// Whether a log that ends at `position` may lack acknowledged commits, by what those who answered hold (L12). Where a set
/// declares that it may lose some, those are meant that were acknowledged before it came about.
pub fn may_lack_commits(current: &Assignment, answers: &BTreeMap<NodeId, Answer>, position: WalPosition) -> bool {
    let rank = |position: WalPosition| (position.timeline, position.lsn);
    let mut chain: Vec<PriorAssignment> = current.since_opened.clone();
    chain.push(current.to_prior());
    chain.iter().enumerate().any(|(index, record)| {
        let is_void = !record.opened && record.commit_sets.iter().all(|set| set.k == 0);
        // a later holder's final position is past all that this record's had acknowledged
        let is_past = chain[index..].iter().any(|later| {
            holder_answered(later, answers)
                && answers.get(&later.node).is_some_and(|answer| rank(answer.position) <= rank(position))
        });
        let may_lack = |set: &CommitSet| {
            let answer_of = |member: &DataMember| {
                answers.get(&member.node).filter(|answer| answer.incarnation == member.incarnation)
            };
            // who did not answer may hold anything
            let ahead = set
                .members
                .iter()
                .filter(|member| answer_of(member).is_none_or(|answer| rank(answer.position) > rank(position)));
            ahead.count() >= set.needed()
        };
        !is_void && !is_past && record.commit_sets.iter().any(may_lack)
    })
}

/// Whether the answers leave out what the active node may have acknowledged alone, by a set that declares it (L11).
pub fn leaves_out_commits(current: &Assignment, answers: &BTreeMap<NodeId, Answer>) -> bool {
    current.opened
        && current.commit_sets.iter().any(CommitSet::may_lose)
        && !holder_answered(&current.to_prior(), answers)
}

/// Whether the node of `record` itself, its role ended and its data of the same life, has stated its final position.
fn holder_answered(record: &PriorAssignment, answers: &BTreeMap<NodeId, Answer>) -> bool {
    answers
        .get(&record.node)
        .is_some_and(|answer| answer.incarnation == record.incarnation && answer.resigned >= record.generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::record::AssignmentReason;
    use crate::types::{Lsn, Timeline};

    #[test]
    fn whoever_is_lost_next_writes_go_on_as_often_as_is_told() {
        let of = |voters: u64, followers: u64, k: u32| {
            let members =
                (2..2 + followers).map(|node| DataMember { node: NodeId(node), incarnation: DataIncarnation(1) });
            Assignment {
                voter_sets: vec![(1..=voters).map(NodeId).collect()],
                ..record(vec![CommitSet { members: members.collect(), k }], true)
            }
        };
        let survived = |voters: u64, followers: u64, k: u32, silent: &[u64]| {
            let lives = |node: NodeId| !silent.contains(&node.0);
            let data_nodes = usize::try_from(followers + 1).unwrap();
            losses_survived(&of(voters, followers, k), data_nodes, lives, lives)
        };
        assert_eq!(survived(1, 1, 1, &[]), 0, "two");
        assert_eq!(survived(3, 1, 1, &[]), 1, "two and a witness");
        assert_eq!((survived(3, 2, 1, &[]), survived(3, 2, 1, &[3])), (1, 0), "three");
        assert_eq!((survived(3, 3, 2, &[]), survived(3, 3, 2, &[4])), (1, 0), "three that vote and a spare");
        assert_eq!(survived(5, 4, 2, &[]), 2, "five");
        assert_eq!((survived(5, 4, 2, &[5]), survived(5, 4, 2, &[4, 5])), (1, 0), "of five, some lost");
        assert_eq!((survived(3, 2, 0, &[]), survived(3, 2, 0, &[3])), (1, 0), "commits wait for nobody");
    }

    fn at(lsn: u64) -> WalPosition {
        WalPosition { timeline: Timeline(2), lsn: Lsn(lsn) }
    }

    fn answer(lsn: u64) -> Answer {
        Answer { incarnation: DataIncarnation(1), position: at(lsn), resigned: Generation(0) }
    }

    fn set_of(nodes: &[u64], k: u32) -> CommitSet {
        let member = |node: &u64| DataMember { node: NodeId(*node), incarnation: DataIncarnation(1) };
        CommitSet { members: nodes.iter().map(member).collect(), k }
    }

    fn record(sets: Vec<CommitSet>, opened: bool) -> Assignment {
        Assignment {
            generation: Generation(5),
            node: NodeId(1),
            incarnation: DataIncarnation(1),
            promoted: Generation(5),
            timeline: Timeline(2),
            start: at(0),
            why: AssignmentReason::Bootstrap,
            voter_sets: vec![[1, 2, 3].map(NodeId).into()],
            commit_sets: sets,
            opened,
            since_opened: vec![],
        }
    }

    #[test]
    fn both_standbys_must_answer_where_one_of_two_is_waited_for() {
        let record = record(vec![set_of(&[2, 3], 1)], true);
        let one = BTreeMap::from([(NodeId(2), answer(10))]);
        assert!(covers_every_commit(&record, &one).is_err());
        let both = BTreeMap::from([(NodeId(2), answer(10)), (NodeId(3), answer(9))]);
        assert_eq!(covers_every_commit(&record, &both), Ok(()));
    }

    #[test]
    fn the_resigned_primary_alone_covers_its_record() {
        let record = record(vec![set_of(&[2, 3], 1)], true);
        let mut own = answer(12);
        own.resigned = Generation(5);
        assert_eq!(covers_every_commit(&record, &BTreeMap::from([(NodeId(1), own)])), Ok(()));
        own.resigned = Generation(4);
        assert!(covers_every_commit(&record, &BTreeMap::from([(NodeId(1), own)])).is_err());
    }

    #[test]
    fn a_rebuilt_standby_does_not_answer_for_its_former_data() {
        let record = record(vec![set_of(&[2, 3], 1)], true);
        let mut rebuilt = answer(10);
        rebuilt.incarnation = DataIncarnation(2);
        let answers = BTreeMap::from([(NodeId(2), answer(10)), (NodeId(3), rebuilt)]);
        assert!(covers_every_commit(&record, &answers).is_err());
    }

    #[test]
    fn both_sets_of_a_change_must_be_covered() {
        let record = record(vec![set_of(&[2], 1), set_of(&[2, 3], 1)], true);
        assert!(covers_every_commit(&record, &BTreeMap::from([(NodeId(2), answer(1))])).is_err());
    }

    #[test]
    fn unopened_records_keep_the_ones_before_in_force() {
        let mut second = record(vec![set_of(&[1, 3], 1)], false);
        second.node = NodeId(2);
        second.since_opened = vec![PriorAssignment {
            generation: Generation(4),
            node: NodeId(1),
            incarnation: DataIncarnation(1),
            commit_sets: vec![set_of(&[2, 3], 1)],
            opened: true,
        }];
        // 1 and 3 answer: enough for the second record, not for the first, whose commits may be on 2 alone
        let answers = BTreeMap::from([(NodeId(1), answer(10)), (NodeId(3), answer(9))]);
        assert!(covers_every_commit(&second, &answers).is_err());
        let answers = BTreeMap::from([(NodeId(1), answer(10)), (NodeId(3), answer(9)), (NodeId(2), answer(9))]);
        assert_eq!(covers_every_commit(&second, &answers), Ok(()));
    }

    #[test]
    fn fewer_ahead_than_a_commit_waits_for_have_nothing_acknowledged_that_the_others_lack() {
        let record = record(vec![set_of(&[2, 3, 4, 5], 2)], true);
        let answers: BTreeMap<NodeId, Answer> =
            [(2, 12), (3, 10), (4, 10), (5, 9)].map(|(node, lsn)| (NodeId(node), answer(lsn))).into();
        assert!(!may_lack_commits(&record, &answers, at(10)), "one alone is ahead");
        assert!(may_lack_commits(&record, &answers, at(9)));
        let mut three = answers;
        three.remove(&NodeId(5));
        assert!(
            may_lack_commits(&record, &three, at(10)),
            "the one who did not answer may hold what the one ahead holds"
        );
    }

    #[test]
    fn where_it_is_declared_a_majority_of_those_who_hold_the_data_goes_on_without_the_rest() {
        let record = record(vec![set_of(&[2, 3], 0)], true);
        let one = BTreeMap::from([(NodeId(2), answer(10))]);
        assert!(covers_every_commit(&record, &one).is_err());
        let both = BTreeMap::from([(NodeId(2), answer(10)), (NodeId(3), answer(9))]);
        assert_eq!(covers_every_commit(&record, &both), Ok(()));
        assert!(leaves_out_commits(&record, &both));
        let mut own = answer(12);
        own.resigned = Generation(5);
        assert!(!leaves_out_commits(&record, &BTreeMap::from([(NodeId(1), own)])));
    }

    #[test]
    fn an_unopened_record_that_waits_for_nobody_is_void() {
        assert_eq!(covers_every_commit(&record(vec![CommitSet::none()], false), &BTreeMap::new()), Ok(()));
        assert!(covers_every_commit(&record(vec![CommitSet::none()], true), &BTreeMap::new()).is_err());
    }
}
