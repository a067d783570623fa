//! Schedules with a promise of their own, each played with many seeds of chance.

use hasup::ha::record::{Durability, MemberKind};
use hasup::ha::rules::{Mutation, Rules};

use crate::faults::{Armed, Fault, Schedule, Target, Trigger, Way};
use crate::rng::{MS, Time};
use crate::run::play_schedule;

const SECOND: Time = 1_000 * MS;

fn three(faults: Vec<(Time, Fault)>) -> Schedule {
    Schedule {
        kinds: vec![MemberKind::Data; 3],
        members: 3,
        durability: Durability::TwoNodes,
        nofailover: None,
        faults,
        armed: Vec::new(),
        heal_at: 32 * SECOND,
        end: 60 * SECOND,
    }
}

fn holds(schedule: &Schedule, seeds: u64) {
    for seed in 0..seeds {
        let outcome = play_schedule(seed, schedule, Rules::default(), false);
        if outcome.violation.is_some() {
            let replay = play_schedule(seed, schedule, Rules::default(), true);
            let from = replay.trace.len().saturating_sub(60);
            panic!("chance {seed} breaks it: {:?}\n{}", outcome.violation, replay.trace[from..].join("\n"));
        }
    }
}

#[test]
fn a_fifth_of_all_datagrams_lost_for_an_hour_moves_nothing() {
    let mut schedule = three(vec![(2 * SECOND, Fault::Loss { per_mille: 200, lasts: 3_600 * SECOND })]);
    schedule.heal_at = 3_602 * SECOND;
    schedule.end = 3_605 * SECOND;
    for seed in 0..3 {
        let outcome = play_schedule(seed, &schedule, Rules::default(), false);
        assert_eq!(outcome.violation, None);
        assert_eq!(outcome.promotions, 1, "the role moved without need (chance {seed})");
    }
}

#[test]
fn a_daemon_killed_again_and_again_moves_nothing() {
    let kill = |at: Time| (at, Fault::Daemon { target: Target::Active, back: 400 * MS });
    let schedule = three((0..8).map(|round| kill((3 + 3 * round) * SECOND)).collect());
    for seed in 0..30 {
        let outcome = play_schedule(seed, &schedule, Rules::default(), false);
        assert_eq!(outcome.violation, None);
        assert_eq!(outcome.promotions, 1, "the role moved without need (chance {seed})");
    }
}

#[test]
fn standbys_that_all_diverged_do_not_stop_the_next_primary_for_ever() {
    let freeze = Fault::Freeze { target: Target::Active, lasts: 3_917 * MS, stops_clock: true };
    let cut = Fault::Isolate { target: Target::Active, way: Way::Both, lasts: 3_986 * MS };
    let kill = Fault::Postgres { target: Target::Active };
    holds(&three(vec![(2_020 * MS, freeze), (3_055 * MS, cut), (7_048 * MS, kill)]), 60);
}

#[test]
fn a_rejoin_that_breaks_off_again_and_again_ends_well() {
    let off = |at: Time, lasts: Time| (at, Fault::Power { target: Target::Active, lasts });
    let first = (3 * SECOND, Fault::Isolate { target: Target::Active, way: Way::Both, lasts: 3 * SECOND });
    let mut faults = vec![first];
    faults.extend((0..6).map(|round| off(6_300 * MS + round * 3_700 * MS, 900 * MS)));
    holds(&three(faults), 60);
}

#[test]
fn roles_given_up_one_after_another_are_not_suspected_at_once() {
    let kill = |at: Time| (at, Fault::Postgres { target: Target::Active });
    let cut = (3 * SECOND, Fault::Isolate { target: Target::Active, way: Way::Both, lasts: 6 * SECOND });
    holds(&three(vec![cut, kill(9_500 * MS), kill(9_900 * MS), kill(11 * SECOND), kill(11_300 * MS)]), 60);
}

#[test]
fn a_guard_that_dies_between_arming_and_promotion_leaves_no_primary_without_one() {
    let mut schedule = three(vec![(3 * SECOND, Fault::Power { target: Target::Active, lasts: 9 * SECOND })]);
    let fault = Fault::Guard { target: Target::Active, back: 20 * MS };
    schedule.armed =
        vec![Armed { trigger: Trigger::Assigned, delay: (20 * MS, 80 * MS), fault, from: 2 * SECOND, times: 1 }];
    holds(&schedule, 100);
}

#[test]
fn a_standby_that_was_a_primary_waiting_for_nobody_acknowledges_nothing_too_early() {
    // with a witness the set shrinks to nobody; started again, PostgreSQL must not remember that
    let mut schedule = three(vec![
        (2_500 * MS, Fault::Power { target: Target::Standby(0), lasts: 14 * SECOND }),
        (15 * SECOND, Fault::Postgres { target: Target::Active }),
        (18 * SECOND, Fault::Postgres { target: Target::Active }),
        (24 * SECOND, Fault::Postgres { target: Target::Active }),
    ]);
    schedule.kinds[2] = MemberKind::Witness;
    holds(&schedule, 60);
}

#[test]
fn two_nodes_taken_out_at_once_leave_no_sender_with_the_old_names() {
    let remove = |which| Fault::Remove { target: Target::Standby(which) };
    // those who stay are far away, so that the ones who leave hold what they do not hold yet
    let far =
        |which| Fault::Slow { from: Target::Active, to: Target::Standby(which), extra: 70 * MS, lasts: 20 * SECOND };
    let mut schedule =
        three(vec![(4 * SECOND, far(2)), (4 * SECOND, far(3)), (5 * SECOND, remove(0)), (5_010 * MS, remove(1))]);
    schedule.kinds = vec![MemberKind::Data; 5];
    schedule.members = 5;
    holds(&schedule, 60);
}

#[test]
fn a_lease_that_is_made_shorter_or_longer_never_overlaps_the_next() {
    let set = |at: Time, thousandths| (at, Fault::Multiplier { thousandths });
    let cut = |at: Time| (at, Fault::Isolate { target: Target::Active, way: Way::Both, lasts: 9 * SECOND });
    let late = |which| (4 * SECOND, Fault::SlowApply { target: Target::Standby(which), lasts: 2_500 * MS });
    // shorter at the peers while the active node still holds a long one, and its link goes
    holds(&three(vec![set(3 * SECOND, 3_000), set(8 * SECOND, 500), cut(8_030 * MS)]), 40);
    // longer at the active node before its peers have heard of it
    holds(&three(vec![late(0), late(1), set(5 * SECOND, 4_000), cut(6 * SECOND)]), 40);
    // a peer that starts anew promised what it has to remember
    let restart = |which, at| (at, Fault::Daemon { target: Target::Standby(which), back: 100 * MS });
    let restarts = [restart(0, 8_050 * MS), restart(1, 8_060 * MS)];
    let mut faults = vec![set(3 * SECOND, 4_000), set(8 * SECOND, 500), cut(8_030 * MS)];
    faults.extend(restarts);
    holds(&three(faults), 40);
}

#[test]
fn a_first_write_that_cannot_come_through_gives_way_to_the_names_that_would_let_it() {
    // the standby that commits wait for is gone, its place in the set too, and the daemon starts with names that nobody meets
    let mut schedule = three(vec![
        (4 * SECOND, Fault::Power { target: Target::Standby(0), lasts: 14 * SECOND }),
        (20 * SECOND, Fault::Power { target: Target::Standby(0), lasts: 9 * SECOND }),
    ]);
    schedule.kinds[2] = MemberKind::Witness;
    let fault = Fault::Daemon { target: Target::Active, back: 150 * MS };
    schedule.armed =
        vec![Armed { trigger: Trigger::SetsChange, delay: (0, 5 * MS), fault, from: 10 * SECOND, times: 3 }];
    holds(&schedule, 60);
}

#[test]
fn where_commits_wait_for_nobody_by_order_a_silent_active_node_is_replaced_all_the_same() {
    let way = |way| vec![(4 * SECOND, Fault::Isolate { target: Target::Active, way, lasts: 9 * SECOND })];
    for faults in
        [way(Way::Both), way(Way::Out), vec![(4 * SECOND, Fault::Power { target: Target::Active, lasts: 9 * SECOND })]]
    {
        let mut schedule = three(faults);
        schedule.durability = Durability::OneNode;
        holds(&schedule, 30);
        for seed in 0..30 {
            assert_eq!(play_schedule(seed, &schedule, Rules::default(), false).promotions, 2, "chance {seed}");
        }
    }
}

#[test]
fn the_furthest_that_may_not_become_active_does_not_hold_up_one_that_lacks_nothing() {
    // five nodes, two copies beside the primary's: what the one alone holds was never acknowledged
    let slow =
        |which| Fault::Slow { from: Target::Active, to: Target::Standby(which), extra: 60 * MS, lasts: 20 * SECOND };
    let cut = (9 * SECOND, Fault::Isolate { target: Target::Active, way: Way::Both, lasts: 12 * SECOND });
    let mut schedule = three((1..4).map(|which| (4 * SECOND, slow(which))).chain([cut]).collect());
    schedule.kinds = vec![MemberKind::Data; 5];
    schedule.members = 5;
    schedule.nofailover = Some(1);
    holds(&schedule, 30);
    for seed in 0..30 {
        assert_eq!(play_schedule(seed, &schedule, Rules::default(), false).promotions, 2, "chance {seed}");
    }
}

/// Node 3 may not become active and holds what node 2 lacks, of which commits waited for one; then node 1 is lost for good.
fn kept_back_ahead(fault: Fault) -> Schedule {
    let far = Fault::Slow { from: Target::Active, to: Target::Standby(0), extra: 900 * MS, lasts: 20 * SECOND };
    let lost = Fault::Power { target: Target::Active, lasts: 90 * SECOND };
    let mut schedule = three(vec![(5 * SECOND, far), (5 * SECOND, fault), (8 * SECOND, lost)]);
    // nothing is repaired: writes have to flow at the end all the same
    (schedule.heal_at, schedule.end) = (90 * SECOND, 36 * SECOND);
    schedule
}

#[test]
fn what_one_holds_that_may_not_become_active_is_fetched_by_one_that_may() {
    let lasts = 80 * SECOND;
    let mark = Fault::KeptBack { target: Target::Standby(1), lasts };
    let unfit = Fault::Unfit { target: Target::Standby(1), lasts };
    for schedule in [kept_back_ahead(mark), kept_back_ahead(unfit)] {
        holds(&schedule, 60);
        // without that, nobody writes before a person comes
        let without = play_schedule(0, &schedule, Rules::without(Mutation::NeverFetch), false);
        assert_eq!((without.promotions, without.violation.map(|violation| violation.rule)), (1, Some("I10")));
    }
}

#[test]
fn a_fetch_that_is_broken_off_is_made_again_or_is_no_longer_needed() {
    let mark = Fault::KeptBack { target: Target::Standby(1), lasts: 80 * SECOND };
    let faults = [
        Fault::Daemon { target: Target::Node(1), back: 300 * MS },
        Fault::Postgres { target: Target::Node(1) },
        Fault::Postgres { target: Target::Node(2) },
        Fault::Daemon { target: Target::Node(2), back: 300 * MS },
        Fault::Power { target: Target::Node(1), lasts: SECOND },
        Fault::Power { target: Target::Node(2), lasts: SECOND },
        Fault::Link { from: Target::Node(2), to: Target::Node(1), is_both: true, lasts: SECOND },
        Fault::Stall { target: Target::Node(1), lasts: SECOND },
        Fault::KeptBack { target: Target::Node(1), lasts: 2 * SECOND },
    ];
    for fault in faults {
        let mut schedule = kept_back_ahead(mark.clone());
        schedule.armed =
            vec![Armed { trigger: Trigger::Fetches, delay: (0, 30 * MS), fault, from: 8 * SECOND, times: 1 }];
        holds(&schedule, 30);
    }
}

#[test]
fn a_change_of_names_that_is_taken_back_half_way_is_not_in_effect() {
    // one standby is away, so that the set in between is not reached, and the checkpointer reads its names only after the record
    // has gone back to those before
    let set = |at: Time, durability| (at, Fault::Durability { durability });
    let mut faults = vec![(2_900 * MS, Fault::Power { target: Target::Standby(0), lasts: 20 * SECOND })];
    for round in 0..8 {
        let at = 3 * SECOND + round * SECOND;
        faults.push(set(at, Durability::OneNode));
        faults.push(set(at + 80 * MS + round * 30 * MS, Durability::TwoNodes));
    }
    holds(&three(faults), 150);
}

#[test]
fn what_a_former_active_node_holds_that_may_not_be_active_again_is_fetched() {
    let far = Fault::Slow { from: Target::Active, to: Target::Standby(0), extra: 900 * MS, lasts: 20 * SECOND };
    let mark = Fault::KeptBack { target: Target::Active, lasts: 80 * SECOND };
    let lost = Fault::Power { target: Target::Standby(1), lasts: 90 * SECOND };
    let crash = Fault::Postgres { target: Target::Active };
    let mut schedule =
        three(vec![(5 * SECOND, far), (5 * SECOND, mark), (8 * SECOND, lost), (8 * SECOND + 50 * MS, crash)]);
    (schedule.heal_at, schedule.end) = (90 * SECOND, 36 * SECOND);
    holds(&schedule, 40);
}
