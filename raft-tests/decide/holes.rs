//! Holes that the simulator found in the brain, each as the one decision that was wrong.

use hasup::ha::durable::DataState;
use hasup::ha::plan::{Step, WaitingOn};
use hasup::ha::record::ResignReason;
use hasup::ha::state::NodeState;
use hasup::ha::trouble::Trouble;
use hasup::ha::view::{Followed, Job, Lineage, Place, SyncNames};
use hasup::types::{DataIncarnation, Generation, Lsn, NodeId, Timeline};

use crate::script::{Script, at, set};

/// Node 2 was just made active under generation 6 and is not opened; node 1 and node 3 help it.
fn just_promoted(name: &'static str) -> Script {
    let mut script = Script::new(name, 3);
    let prior = script.record.0.to_prior();
    script.record.0.generation = Generation(6);
    script.record.0.node = NodeId(2);
    script.record.0.promoted = Generation(6);
    script.record.0.timeline = Timeline(5);
    script.record.0.start = at(4, 100);
    script.record.0.opened = false;
    script.record.0.since_opened = vec![prior];
    script.record.0.commit_sets = vec![set(&[1, 3], 1)];
    script.record.1 = 12;
    script.make_primary(2, 6, 5, 100);
    script.node(2).postgres.standbys.clear();
    for node in [1, 2, 3] {
        script.node(node).durable.acknowledged = Generation(6);
    }
    let one = script.node(1);
    one.durable.resigned = Generation(5);
    one.guard.armed = None;
    one.postgres = hasup::ha::view::PostgresView {
        in_recovery: Some(true),
        has_standby_signal: true,
        position: Some(at(4, 104)),
        ..Default::default()
    };
    script.cut(3);
    script
}

fn does(script: &Script, node: u64, wanted: impl Fn(&Step) -> bool) -> bool {
    script.plans[&node].steps.iter().any(wanted)
}

#[test]
fn a_node_just_made_active_is_not_suspected_for_not_having_been_it_before() {
    let mut script = Script::new("", 3);
    script.wait(5_000);
    script.record.0.generation = Generation(6);
    script.record.0.promoted = Generation(6);
    script.record.0.node = NodeId(2);
    // the pulses learn of the record only with the stance that follows from this very decision
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    for node in [1, 3] {
        assert_eq!(script.plans[&node].stance.report.suspects, Generation(0), "node {node}");
        assert!(!does(&script, node, |step| matches!(step, Step::PersistBar { .. })), "node {node}");
    }
}

#[test]
fn a_chosen_node_whose_generation_a_majority_barred_gives_up_at_once() {
    let mut script = Script::new("", 3);
    script.record.0.generation = Generation(6);
    script.record.0.promoted = Generation(6);
    script.record.0.node = NodeId(2);
    script.record.0.start = at(4, 100);
    for node in [1, 3] {
        script.node(node).durable.barred = Generation(6);
    }
    script.node(1).guard.armed = None;
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    let gives_up = |step: &Step| matches!(step, Step::PersistResignation { reason: ResignReason::LeaseOver, .. });
    assert!(does(&script, 2, gives_up), "{:?}", script.plans[&2]);
}

#[test]
fn where_every_standby_diverged_before_the_record_is_opened_exactly_one_is_rebuilt() {
    let mut script = just_promoted("");
    script.node(3).postgres.position = Some(at(4, 103));
    for node in [1, 3] {
        script.node(node).lineage = Some((Generation(6), Lineage::Diverged));
    }
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    let rebuilds = |step: &Step| matches!(step, Step::Rejoin { .. });
    assert!(
        !does(&script, 1, rebuilds) && !does(&script, 3, rebuilds),
        "those on their way back are waited for a little"
    );
    script.wait(2_500);
    script.extend();
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    assert!(!does(&script, 1, rebuilds), "the node with more log keeps it");
    assert!(does(&script, 3, rebuilds), "{:?}", script.plans[&3]);
}

#[test]
fn an_unopened_record_takes_the_rebuilt_standby_into_a_set_beside() {
    let mut script = just_promoted("");
    script.node(3).durable.incarnation = DataIncarnation(2);
    script.streams(3, 2, 5, 111);
    script.node(2).postgres.standbys = [(crate::script::member(3, 2), Lsn(111))].into();
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    script.lead(3, &[1, 2, 3]);
    assert_eq!(script.record.0.commit_sets.len(), 2, "the old set stays until the new one is in effect");
    assert!(!script.record.0.opened);
    assert!(script.record.0.commit_sets[1].members.contains(&crate::script::member(3, 2)));
}

#[test]
fn a_copy_that_broke_off_is_made_again_before_the_record_is_opened() {
    let mut script = just_promoted("");
    script.node(1).durable.data = DataState::Rebuilding { until: None };
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 1, |step| matches!(step, Step::Rejoin { .. })), "{:?}", script.plans[&1]);
}

#[test]
fn nothing_is_destroyed_for_a_source_that_is_not_heard() {
    let mut script = just_promoted("");
    script.record.0.opened = true;
    script.record.0.since_opened.clear();
    script.node(1).lineage = Some((Generation(6), Lineage::Diverged));
    script.tick(&[1, 2, 3]);
    script.wait(1_000);
    script.tick(&[1, 3]);
    assert!(!does(&script, 1, |step| matches!(step, Step::Rejoin { .. })));
    assert!(script.plans[&1].waiting_on.contains(&WaitingOn::Source { node: NodeId(2) }));
}

#[test]
fn a_copy_of_a_former_primary_compares_histories_before_it_follows_the_next() {
    let mut script = just_promoted("");
    script.node(1).durable.data = DataState::Rebuilding { until: Some(Lsn(110)) };
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 1, |step| matches!(step, Step::CheckLineage { .. })), "{:?}", script.plans[&1]);
    script.node(1).lineage = Some((Generation(6), Lineage::Diverged));
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 1, |step| matches!(step, Step::Rejoin { .. })), "{:?}", script.plans[&1]);
}

#[test]
fn a_node_that_knew_a_newer_record_does_nothing_that_an_older_one_says() {
    let mut script = Script::new("", 3);
    for node in [1, 2, 3] {
        script.node(node).durable.acknowledged = Generation(6);
    }
    script.tick(&[1, 2, 3]);
    for node in [1, 2, 3] {
        let plan = &script.plans[&node];
        assert_eq!((plan.stance.asks, plan.stance.grants, plan.steps.len()), (None, None, 0), "node {node}: {plan:?}");
    }
}

#[test]
fn a_receiver_of_a_former_primary_is_cut_before_histories_are_judged() {
    let mut script = just_promoted("");
    script.streams(3, 1, 4, 99);
    script.node(3).postgres.follows = Some(hasup::ha::view::Followed { node: NodeId(1), generation: Generation(5) });
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 3, |step| matches!(step, Step::CutReceiver { .. })));
    assert!(!does(&script, 3, |step| matches!(step, Step::Follow(_))), "{:?}", script.plans[&3]);
}

#[test]
fn a_node_to_be_taken_out_that_is_active_holds_up_nothing() {
    let mut script = Script::new("", 3);
    script.goals.removing = [NodeId(1)].into();
    script.tick(&[1, 2, 3]);
    script.lead(2, &[1, 2, 3]);
    assert_eq!(script.record.1, 10, "neither sets nor voters change for it");
}

#[test]
fn what_failed_holds_up_nothing_but_its_own_next_try() {
    let mut script = Script::new("", 3);
    let retry_at = script.time() + std::time::Duration::from_secs(1);
    let one = script.node(1);
    one.postgres.names = None;
    one.postgres.has_written = false;
    let failed = |work| Some(Job::Failed { work: Box::new(work), error: "it hung".to_owned(), retry_at });
    one.job = failed(Job::ProbingWrite);
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 1, |step| matches!(step, Step::SetNames { .. })), "{:?}", script.plans[&1]);
    assert!(!does(&script, 1, |step| matches!(step, Step::ProbeWrite { .. })));
    script.node(1).job = failed(Job::SettingNames);
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 1, |step| matches!(step, Step::ProbeWrite { .. })), "{:?}", script.plans[&1]);
    // a standby whose comparison failed starts its PostgreSQL all the same
    let mut script = just_promoted("");
    let one = script.node(1);
    one.guard.has_processes = false;
    one.postgres.position = None;
    one.job = failed(Job::CheckingLineage);
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 1, |step| matches!(step, Step::StartPostgres)), "{:?}", script.plans[&1]);
}

#[test]
fn a_primary_armed_before_the_daemon_started_is_not_given_up_because_nobody_gets_a_connection() {
    let mut script = Script::new("", 3);
    script.node(1).postgres = hasup::ha::view::PostgresView { has_standby_signal: true, ..Default::default() };
    script.wait(60_000);
    script.extend();
    script.tick(&[1, 2, 3]);
    assert!(!does(&script, 1, |step| matches!(step, Step::Fence { .. } | Step::PersistResignation { .. })));
    assert_eq!(script.plans[&1].stance.asks, Some(Generation(5)), "{:?}", script.plans[&1]);
    // one that does not answer at all is: others can take over
    script.node(1).postgres.stalled_for = std::time::Duration::from_secs(31);
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 1, |step| matches!(step, Step::Fence { .. })), "{:?}", script.plans[&1]);
}

#[test]
fn a_primary_on_a_full_disk_is_given_up_only_where_another_node_has_room() {
    let mut script = Script::new("", 3);
    let gives_up = |script: &mut Script| {
        script.extend();
        script.tick(&[1, 2, 3]);
        script.tick(&[1, 2, 3]);
        does(script, 1, |step| matches!(step, Step::Fence { .. }))
    };
    script.node(2).troubles = [Trouble::DiskLow].into();
    script.node(3).troubles = [Trouble::RaftStoppedDiskFull, Trouble::DiskFull].into();
    assert!(!gives_up(&mut script), "{:?}", script.plans[&1]);
    script.node(1).troubles = [Trouble::DiskFull].into();
    assert!(!gives_up(&mut script), "nobody could do better: {:?}", script.plans[&1]);
    script.node(1).troubles = [Trouble::DiskLow].into();
    script.node(2).troubles.clear();
    assert!(!gives_up(&mut script), "it still takes writes: {:?}", script.plans[&1]);
    script.node(1).troubles = [Trouble::DiskFull].into();
    assert!(gives_up(&mut script), "{:?}", script.plans[&1]);
}

#[test]
fn a_primary_on_a_read_only_disk_is_given_up_only_where_the_others_are_a_majority_without_it() {
    let gives_up = |script: &mut Script, heard: &[u64]| {
        script.extend();
        script.tick(heard);
        script.tick(heard);
        does(script, 1, |step| matches!(step, Step::Fence { .. } | Step::PersistResignation { .. }))
    };
    let mut script = Script::new("", 3);
    script.node(1).troubles = [Trouble::DiskReadOnly].into();
    // node 3 is gone; node 2 has room and all log, but cannot take over without the word that node 1 may be unable to write
    script.wait(5_000);
    assert!(!gives_up(&mut script, &[1, 2]), "{:?}", script.plans[&1]);
    assert!(script.plans[&1].serves_until.is_some(), "who is connected goes on reading: {:?}", script.plans[&1]);
    assert!(gives_up(&mut script, &[1, 2, 3]), "{:?}", script.plans[&1]);
}

#[test]
fn a_word_about_an_earlier_record_settles_nothing_of_this_one() {
    let mut script = Script::new("", 3);
    script.tick(&[1, 2, 3]);
    // the set is the same again as when node 1 last looked, and another was in between
    script.record.0.commit_sets = vec![set(&[2], 1), set(&[2, 3], 1)];
    script.record.1 += 2;
    script.lead(2, &[1, 2, 3]);
    assert_eq!(script.record.0.commit_sets.len(), 2, "the old set stays until node 1 speaks of this record");
    script.tick(&[1, 2, 3]);
    script.lead(2, &[1, 2, 3]);
    assert_eq!(script.record.0.commit_sets.len(), 1);
}

#[test]
fn who_hears_of_a_later_life_of_the_cluster_ends_its_role_and_helps_nobody() {
    let mut script = Script::new("", 3);
    for node in [1, 2] {
        script.node(node).newer_cluster = Some(hasup::types::ClusterGeneration(2));
    }
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 1, |step| matches!(step, Step::Fence { .. })), "{:?}", script.plans[&1]);
    for node in [1, 2] {
        let stance = &script.plans[&node].stance;
        assert_eq!((stance.asks, stance.grants, stance.report.suspects), (None, None, Generation(0)), "node {node}");
        assert_eq!(script.plans[&node].serves_until, None);
    }
}

#[test]
fn a_node_that_may_be_a_copy_follows_nobody_and_one_that_is_a_copy_takes_no_part() {
    let mut script = Script::new("", 3);
    let standby = script.node(2);
    let followed = standby.postgres.follows.take();
    (standby.place, standby.postgres.is_streaming, standby.postgres.has_receiver) = (Place::Moved, false, false);
    script.tick(&[1, 2, 3]);
    assert!(!does(&script, 2, |step| matches!(step, Step::Follow(_))), "{:?}", script.plans[&2]);
    assert_eq!(script.plans[&2].waiting_on, [WaitingOn::Place]);
    // a copy that says to be where the other is: what the active node answers goes to that one
    script.node(2).place = Place::Known;
    script.node(2).pulse.peers.clear();
    script.tick(&[2]);
    assert!(!does(&script, 2, |step| matches!(step, Step::Follow(_))), "{:?}", script.plans[&2]);
    assert_eq!(script.plans[&2].waiting_on, [WaitingOn::Answer { node: NodeId(1) }]);
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 2, |step| matches!(step, Step::Follow(Followed { node: NodeId(1), .. }))));

    // copied while it was the standby, and while it was the active node
    let standby = script.node(2);
    (standby.place, standby.postgres.follows, standby.postgres.has_receiver) = (Place::Taken, followed, true);
    script.node(1).place = Place::Taken;
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 2, |step| matches!(step, Step::CutReceiver { .. })), "{:?}", script.plans[&2]);
    assert!(does(&script, 1, |step| matches!(step, Step::Fence { .. })), "{:?}", script.plans[&1]);
    for node in [1, 2] {
        let (plan, stance) = (&script.plans[&node], &script.plans[&node].stance);
        assert_eq!((stance.asks, stance.grants, plan.serves_until), (None, None, None), "node {node}");
        assert_eq!((plan.state, stance.report.suspects), (NodeState::Failed, Generation(0)), "node {node}");
    }
}

#[test]
fn a_stream_that_is_lost_is_sought_where_the_active_node_has_moved() {
    let mut script = Script::new("", 3);
    let again = |step: &Step| matches!(step, Step::Follow(Followed { node: NodeId(1), generation: Generation(5) }));
    script.node(2).postgres.has_source_moved = true;
    script.tick(&[1, 2, 3]);
    assert!(!does(&script, 2, again), "it still streams from the former address: {:?}", script.plans[&2]);
    script.node(2).postgres.is_streaming = false;
    script.tick(&[1, 2, 3]);
    assert!(does(&script, 2, again), "{:?}", script.plans[&2]);
    script.node(2).postgres.has_source_moved = false;
    script.tick(&[1, 2, 3]);
    assert!(!does(&script, 2, again), "it looks at the right place: {:?}", script.plans[&2]);
}

#[test]
fn senders_stay_only_where_old_and_new_copies_of_the_names_cannot_err() {
    let names = |nodes: &[u64], k: u32| SyncNames::Set(set(nodes, k));
    assert!(names(&[2], 1).may_mix_with(&names(&[2, 3], 1)));
    assert!(names(&[], 0).may_mix_with(&names(&[2], 1)) && names(&[2, 3, 4], 2).may_mix_with(&SyncNames::Nobody));
    assert!(!names(&[2, 3], 1).may_mix_with(&names(&[2], 1)), "an old copy may go on to release for a member left out");
    assert!(
        !names(&[2, 3, 4, 5], 2).may_mix_with(&names(&[2, 3], 1)),
        "one of the new k, met by a member of the old set alone"
    );
    assert!(!names(&[2, 3], 1).may_mix_with(&names(&[2, 3, 4, 5], 2)));
}

/// Node 3 was rebuilt from node 1, on timeline 4 up to `until`, and is not whole; node 1 is gone, and node 2 goes on from 100.
fn rebuilt_from_one_that_is_gone(until: u64, from: Option<u32>) -> Script {
    let mut script = just_promoted("");
    script.cut(3);
    let three = script.node(3);
    three.durable.incarnation = DataIncarnation(2);
    three.durable.data = DataState::Rebuilding { until: Some(Lsn(until)) };
    three.lineage = Some((Generation(5), Lineage::Follows));
    three.rebuilt_from = from.map(Timeline);
    three.postgres.position = None;
    script.node(2).pulse.peers.remove(&NodeId(1));
    script.node(3).pulse.peers.remove(&NodeId(1));
    script.tick(&[2, 3]);
    script.tick(&[2, 3]);
    script
}

#[test]
fn what_was_rebuilt_from_a_primary_that_is_gone_does_not_wait_where_it_is_known_what_it_lacks() {
    let follows = |step: &Step| matches!(step, Step::Follow(followed) if followed.node == NodeId(2));
    let rebuilds = |step: &Step| matches!(step, Step::Rejoin { .. });
    let script = rebuilt_from_one_that_is_gone(100, Some(4));
    assert!(does(&script, 3, follows), "node 2 holds all of it: {:?}", script.plans[&3].steps);
    let script = rebuilt_from_one_that_is_gone(101, Some(4));
    assert!(does(&script, 3, rebuilds), "nobody holds it any more: {:?}", script.plans[&3].steps);
    // log of two primaries, perhaps
    let script = rebuilt_from_one_that_is_gone(101, None);
    assert!(!does(&script, 3, rebuilds) && !does(&script, 3, follows), "{:?}", script.plans[&3].steps);
    let mut script = rebuilt_from_one_that_is_gone(101, Some(3));
    assert!(!does(&script, 3, rebuilds) && !does(&script, 3, follows), "{:?}", script.plans[&3].steps);
    script.wait(121_000);
    script.extend();
    script.tick(&[2, 3]);
    script.tick(&[2, 3]);
    assert!(does(&script, 3, rebuilds), "it has had time enough: {:?}", script.plans[&3].steps);
}

/// Of five voters three suspect and a fourth has promised once more: its bar beside the two others' would leave a majority to the lease.
#[test]
fn who_has_promised_does_not_bar_whatever_the_others_suspect() {
    let mut script = Script::new("", 5);
    script.wait(2_150);
    script.tick(&[3, 4, 5]);
    let until = script.time() + std::time::Duration::from_millis(500);
    script.node(2).pulse.promise_end = until;
    for _ in 0..2 {
        script.tick(&[2, 3, 4, 5]);
    }
    let bars = |script: &Script, node: u64| does(script, node, |step| matches!(step, Step::PersistBar { .. }));
    assert!((3..=5).all(|node| bars(&script, node)), "three suspect: {:?}", script.plans);
    assert!(!bars(&script, 2), "{:?}", script.plans[&2]);
    script.wait(501);
    script.tick(&[2, 3, 4, 5]);
    assert!(bars(&script, 2), "{:?}", script.plans[&2]);
}
