//! Scenario scripts: facts, events, and the plans that follow, as golden files that read like incident reports.
//!
//! `HASUP_BLESS=1 cargo test -p raft-tests --test decide` writes the golden files anew; read the difference before it is committed.

mod fetch;
mod holes;
mod script;

use hasup::ha::durable::DataState;
use hasup::ha::record::{CommitSet, ResignReason, SwitchoverGoal};
use hasup::ha::view::{CleanStop, Lineage, NamesInEffect, SyncNames};
use hasup::types::{DataIncarnation, Generation, Lsn, NodeId, Timeline};

use script::{Script, at, member, set};

/// Node 1 loses power; 2 and 3 find out, bar, state; the leader assigns; node 2 is promoted and opened.
#[test]
fn failover_waits_for_promise_bars_and_positions() {
    let mut script = Script::new("failover", 3);
    script.tell("all is well");
    script.tick(&[1, 2, 3]);
    script.lead(3, &[1, 2, 3]);
    script.wait(2_050);
    script.tell("node 1 has been silent for two seconds: the promises to it run on");
    script.tick(&[2, 3]);
    script.wait(100);
    script.tell("the promises have ended: both suspect");
    script.tick(&[2, 3]);
    script.tell("each hears the other's suspicion: both bar");
    script.tick(&[2, 3]);
    for node in [2, 3] {
        script.node(node).durable.barred = Generation(5);
        script.cut(node);
    }
    script.node(3).postgres.position = None;
    script.tell("the bars are on disk and the receivers gone; node 3 does not know yet where its log ends");
    script.tick(&[2, 3]);
    script.lead(3, &[2, 3]);
    script.node(3).postgres.position = Some(at(4, 99));
    script.tell("now it does");
    script.tick(&[2, 3]);
    script.lead(3, &[2, 3]);
    script.tell("both apply the record");
    script.tick(&[2, 3]);
    for node in [2, 3] {
        script.node(node).durable.acknowledged = Generation(6);
    }
    script.tell("both have it on disk that they acknowledge generation 6");
    script.tick(&[2, 3]);
    let lease = script.time() + std::time::Duration::from_secs(2);
    script.node(2).pulse.lease = Some((Generation(6), lease));
    script.streams(3, 2, 4, 99);
    script.tell("node 2 holds a lease");
    script.tick(&[2, 3]);
    script.make_primary(2, 6, 5, 100);
    let two = script.node(2);
    two.postgres.has_standby_signal = false;
    two.postgres.has_written = false;
    two.postgres.standbys = [(member(3, 1), Lsn(100))].into();
    two.postgres.names = Some(NamesInEffect { names: SyncNames::Set(set(&[1, 3], 1)), since: Lsn(100) });
    script.tell("node 2 is promoted; node 3 holds nothing of the new timeline yet");
    script.tick(&[2, 3]);
    script.lead(3, &[2, 3]);
    script.node(2).postgres.has_standby_signal = true;
    script.node(2).postgres.standbys = [(member(3, 1), Lsn(101))].into();
    script.streams(3, 2, 5, 101);
    script.tell("node 3 has flushed the beginning of the new timeline");
    script.tick(&[2, 3]);
    script.lead(3, &[2, 3]);
    script.tell("the record is opened");
    script.tick(&[2, 3]);
    script.node(2).postgres.has_written = true;
    script.tell("a first write has come through");
    script.tick(&[2, 3]);
    script.end();
}

/// Node 3, which leads Raft, is taken out: it hands the leadership over before it loses its vote, as it could not remove itself.
#[test]
fn a_leader_that_is_taken_out_hands_the_leadership_over_first() {
    let mut script = Script::new("leader_taken_out", 3);
    let all = script.raft_voters[0].clone();
    script.goals.removing = [NodeId(3)].into();
    script.record.0.voter_sets = vec![all.clone(), [NodeId(1)].into()];
    script.record.0.commit_sets = vec![set(&[2], 1)];
    script.tell("node 3 leads Raft and is to leave; the record has begun to change the voters");
    script.tick(&[1, 2, 3]);
    script.lead(3, &[1, 2, 3]);
    assert_eq!(script.raft_voters, std::slice::from_ref(&all), "it votes until another one leads");
    script.tell("node 1 leads");
    script.lead(1, &[1, 2, 3]);
    script.lead(1, &[1, 2, 3]);
    script.tell("node 3 leads on without a vote, as node 1 had none either before the voters changed");
    script.lead(3, &[1, 2, 3]);
    script.tell("as before the first of it, but node 3 has tried to hand over in vain: the voters change all the same");
    script.record.0.voter_sets = vec![all.clone(), [NodeId(1)].into()];
    script.record.0.generation = Generation(5);
    script.raft_voters = vec![all];
    script.has_failed_to_hand_over = true;
    script.lead(3, &[1, 2, 3]);
    assert_eq!(script.raft_voters, [[NodeId(1)].into()]);
    script.end();
}

/// An operator moves the role to node 3.
#[test]
fn switchover_stops_cleanly_then_resigns_then_assigns_the_target() {
    let mut script = Script::new("switchover", 3);
    script.goals.switchover = Some(SwitchoverGoal { from: Generation(5), to: Some(NodeId(3)) });
    script.tell("a switchover to node 3 is ordered");
    script.tick(&[1, 2, 3]);
    script.node(1).postgres.checkpointed_for = Some(Generation(5));
    script.tell("a checkpoint has been made");
    script.tick(&[1, 2, 3]);
    script.node(1).postgres.cleanly_stopped = Some(stopped_with(2, &script));
    script.node(1).postgres.in_recovery = None;
    script.node(1).guard.has_processes = false;
    script.tell("PostgreSQL of node 1 has stopped in order; all hold the same log");
    for node in [2, 3] {
        script.streams(node, 1, 4, 100);
    }
    script.tick(&[1, 2, 3]);
    script.node(1).durable.resigned = Generation(5);
    script.node(1).durable.resign_reason = Some(ResignReason::Switchover);
    script.tell("the resignation is on disk");
    script.tick(&[1, 2, 3]);
    script.lead(2, &[1, 2, 3]);
    script.node(1).guard.armed = None;
    script.tick(&[1, 2, 3]);
    for node in [2, 3] {
        script.node(node).durable.barred = Generation(5);
        script.cut(node);
    }
    script.tell("the others have barred the generation, which ended before the promises to it did");
    script.tick(&[1, 2, 3]);
    script.lead(2, &[1, 2, 3]);
    script.tell("node 3 has the role");
    script.tick(&[1, 2, 3]);
    script.record.0.opened = true;
    script.tell("commits go on, so the former primary takes nothing from anybody any more");
    script.tick(&[1]);
    script.end();
}

/// The stop in order of the primary of generation 5 just now, from which so many standbys streamed.
fn stopped_with(standbys: usize, script: &Script) -> CleanStop {
    CleanStop { generation: Generation(5), at: script.time(), standbys }
}

/// A node whose PostgreSQL was stopped in order starts it at once where commits wait for it, and soon in any case.
#[test]
fn a_former_primary_makes_way_only_where_it_is_not_needed() {
    let mut script = Script::new("make_way", 3);
    script.wait(1000);
    script.node(1).postgres.cleanly_stopped = Some(stopped_with(2, &script));
    script.node(1).postgres.in_recovery = None;
    script.node(1).guard.has_processes = false;
    script.node(1).guard.armed = None;
    script.node(1).durable.resigned = Generation(5);
    script.node(1).durable.resign_reason = Some(ResignReason::Switchover);
    script.tell("node 1 has resigned, and nobody but node 2 is heard: one to become active, none to confirm");
    script.tick(&[1, 2]);
    script.tell("both are heard");
    script.tick(&[1, 2, 3]);
    script.wait(1001);
    script.tell("the others take their time");
    script.tick(&[1, 2, 3]);
    script.node(1).postgres.cleanly_stopped = Some(stopped_with(1, &script));
    script.tell("or one of them did not stream when node 1 stopped: it is heard, and may not be able to confirm");
    script.tick(&[1, 2, 3]);
    script.end();
}

/// The role has been given up in trouble six times within an hour, and is given up again: a person says who is to have it, once.
#[test]
fn a_role_that_is_handed_round_waits_for_an_order() {
    let mut script = Script::new("handed_round", 3);
    script.role_changes = 6;
    let one = script.node(1);
    one.postgres.in_recovery = None;
    one.guard.has_processes = false;
    one.guard.armed = None;
    one.durable.resigned = Generation(5);
    one.durable.resign_reason = Some(ResignReason::PostgresFailed);
    script.tell("PostgreSQL of node 1 has died, and the resignation is on disk");
    script.tick(&[1, 2, 3]);
    for node in [2, 3] {
        script.node(node).durable.barred = Generation(5);
        script.cut(node);
    }
    script.tick(&[1, 2, 3]);
    script.lead(2, &[1, 2, 3]);
    script.goals.switchover = Some(SwitchoverGoal { from: Generation(5), to: Some(NodeId(3)) });
    script.tell("a person orders node 3 to be active");
    script.lead(2, &[1, 2, 3]);
    assert_eq!(script.record.0.node, NodeId(3));
    script.tell(
        "node 1 has fallen silent instead: for a moment that means nothing, and a dead node is replaced however often",
    );
    script.record.0.node = NodeId(1);
    script.record.0.generation = Generation(5);
    script.goals.switchover = None;
    script.lead(2, &[2, 3]);
    script.unheard_for = std::time::Duration::from_secs(3);
    script.lead(2, &[2, 3]);
    script.end();
}

/// Node 3 was cut off with node 2 for a moment and barred; the active node never lost its lease.
#[test]
fn a_living_primary_is_renewed_without_promotion() {
    let mut script = Script::new("renewal", 3);
    script.node(3).durable.barred = Generation(5);
    script.cut(3);
    script.tell("node 3 has barred the generation of a primary that lives");
    script.tick(&[1, 2, 3]);
    script.lead(2, &[1, 2, 3]);
    script.tell("the same node, the next generation");
    script.tick(&[1, 2, 3]);
    for node in [1, 2, 3] {
        script.node(node).durable.acknowledged = Generation(6);
    }
    script.tell("acknowledged on every disk");
    script.tick(&[1, 2, 3]);
    let lease = script.time() + std::time::Duration::from_secs(2);
    script.node(1).pulse.lease = Some((Generation(6), lease));
    script.streams(3, 1, 4, 100);
    script.tell("node 1 holds a lease under it");
    script.tick(&[1, 2, 3]);
    script.end();
}

/// A cluster of one gets a second member, then a third; both become voters in one change.
#[test]
fn growth_from_one_to_two_to_three() {
    let mut script = Script::new("growth", 1);
    script.tell("alone: commits wait for nobody");
    script.tick(&[1]);
    script.lead(1, &[1]);
    script.join(2);
    script.streams(2, 1, 4, 100);
    script.node(1).postgres.standbys = [(member(2, 1), Lsn(100))].into();
    script.tell("node 2 has been copied and streams");
    script.tick(&[1, 2]);
    script.tick(&[1, 2]);
    script.lead(1, &[1, 2]);
    script.tick(&[1, 2]);
    let names = |set: &CommitSet| Some(NamesInEffect { names: SyncNames::Set(set.clone()), since: Lsn(100) });
    script.node(1).postgres.names = names(&set(&[2], 1));
    script.tell("the names are in effect, and node 2 holds the log up to then");
    script.tick(&[1, 2]);
    script.lead(1, &[1, 2]);
    script.tick(&[1, 2]);
    script.lead(1, &[1, 2]);
    script.join(3);
    script.streams(3, 1, 4, 100);
    script.node(1).postgres.standbys = [(member(2, 1), Lsn(100)), (member(3, 1), Lsn(100))].into();
    script.tell("node 3 has been copied and streams");
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    script.lead(1, &[1, 2, 3]);
    script.node(1).postgres.names = names(&set(&[2, 3], 1));
    script.tick(&[1, 2, 3]);
    script.lead(1, &[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    script.tell("commits wait for one of both; now the voters");
    script.lead(1, &[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    for node in [1, 2, 3] {
        script.node(node).durable.acknowledged = Generation(6);
    }
    let lease = script.time() + std::time::Duration::from_secs(2);
    script.node(1).pulse.lease = Some((Generation(6), lease));
    script.node(1).guard.armed = Some(Generation(6));
    script.node(1).guard.deadline = lease;
    script.tell("node 1 holds its lease by the old and the new voters");
    script.tick(&[1, 2, 3]);
    script.lead(1, &[1, 2, 3]);
    script.lead(1, &[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    script.end();
}

/// The former active node comes back with a tail that the others do not have.
#[test]
fn a_diverged_node_rejoins_by_itself() {
    let mut script = Script::new("rejoin", 3);
    script.record.0.generation = Generation(6);
    script.record.0.node = NodeId(2);
    script.record.0.promoted = Generation(6);
    script.record.0.timeline = Timeline(5);
    script.record.0.start = at(4, 100);
    script.record.0.commit_sets = vec![set(&[1, 3], 1)];
    script.record.1 = 12;
    script.make_primary(2, 6, 5, 100);
    for node in [1, 2, 3] {
        script.node(node).durable.acknowledged = Generation(6);
    }
    script.streams(3, 2, 5, 110);
    let one = script.node(1);
    one.durable.resigned = Generation(5);
    one.guard.armed = None;
    one.postgres = hasup::ha::view::PostgresView {
        in_recovery: Some(true),
        has_standby_signal: true,
        position: Some(at(4, 104)),
        ..Default::default()
    };
    script.tell("node 1 is back as a standby, its log past where timeline 5 began");
    script.tick(&[2, 3]);
    script.tick(&[1, 2, 3]);
    script.node(1).lineage = Some((Generation(6), Lineage::Diverged));
    script.tell("the histories have parted");
    script.tick(&[1, 2, 3]);
    let one = script.node(1);
    one.durable.data = DataState::Rebuilding { until: None };
    one.durable.incarnation = DataIncarnation(2);
    one.guard.has_processes = false;
    one.postgres = hasup::ha::view::PostgresView { has_standby_signal: true, ..Default::default() };
    one.lineage = None;
    script.tell("the daemon is killed in the middle of the rewind, and starts again");
    script.tick(&[1, 2, 3]);
    let one = script.node(1);
    one.durable.data = DataState::Rebuilding { until: Some(Lsn(112)) };
    one.postgres.position = Some(at(5, 105));
    script.tell("the rewind is done; it has to stream past where the source's log ended");
    script.tick(&[1, 2, 3]);
    script.node(1).guard.has_processes = true;
    script.streams(1, 2, 5, 108);
    script.tell("it streams, not far enough yet");
    script.tick(&[1, 2, 3]);
    script.streams(1, 2, 5, 113);
    script.node(2).postgres.standbys = [(member(1, 2), Lsn(113)), (member(3, 1), Lsn(113))].into();
    script.tell("far enough, and the active node sees it stream");
    script.tick(&[2, 3]);
    script.tick(&[1, 2, 3]);
    script.node(1).durable.data = DataState::Intact;
    script.tell("it answers for its data, and gets back into the set that commits wait for");
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    script.lead(3, &[1, 2, 3]);
    script.end();
}
