//! L12's fetch: who gets log from a standby that cannot become active, and who does not.

use hasup::ha::plan::{Step, WaitingOn};
use hasup::ha::record::ResignReason;
use hasup::ha::view::Followed;
use hasup::types::{Generation, NodeId};

use crate::script::{Script, at};

/// Node 1 fell silent and all others have barred it; node 3 is marked nofailover and holds more than node 2.
fn kept_back_ahead(name: &'static str, nodes: u64) -> Script {
    let mut script = Script::new(name, nodes);
    script.kept_back = [NodeId(3)].into();
    script.wait(5_000);
    for node in 2..=nodes {
        script.node(node).durable.barred = Generation(5);
        script.cut(node);
        script.node(node).postgres.position = Some(at(4, 99));
    }
    script.node(3).postgres.position = Some(at(4, 105));
    script
}

fn fetches(script: &Script, node: u64) -> bool {
    script.plans[&node].steps.contains(&Step::Fetch { from: NodeId(3), under: Generation(5) })
}

fn cuts(script: &Script, node: u64) -> bool {
    script.plans[&node].steps.contains(&Step::CutReceiver { generation: Generation(5) })
}

#[test]
fn what_only_a_node_marked_nofailover_holds_is_fetched_before_the_leader_chooses() {
    let mut script = kept_back_ahead("fetch", 3);
    script.tell("both have barred; node 3, marked nofailover, holds more than node 2, and says so first");
    script.tick(&[3, 2]);
    script.lead(3, &[2, 3]);
    script.tell("node 2 has heard that");
    script.tick(&[2, 3]);
    script.lead(3, &[2, 3]);
    begins(&mut script, 2, 3);
    script.node(2).postgres.position = Some(at(4, 102));
    script.tell("node 2 receives, and states nothing while its log grows");
    script.tick(&[2, 3]);
    script.lead(3, &[2, 3]);
    script.node(2).postgres.position = Some(at(4, 105));
    script.tell("it has all of it");
    script.tick(&[2, 3]);
    script.cut(2);
    script.tell("the receiver is gone again");
    script.tick(&[2, 3]);
    script.lead(3, &[2, 3]);
    script.tick(&[2, 3]);
    script.end();
}

#[test]
fn nothing_is_fetched_that_is_not_needed_or_cannot_be_had() {
    type Change = fn(&mut Script);
    let cases: [(&str, Change, bool); 11] = [
        ("as it is", |_| (), true),
        (
            "not fit instead of marked",
            |script| {
                script.kept_back.clear();
                script.node(3).unfit = Some("no".to_owned());
            },
            true,
        ),
        ("the source may take over itself", |script| script.kept_back.clear(), false),
        ("this node is marked, too", |script| script.kept_back = [NodeId(2), NodeId(3)].into(), false),
        ("this node is not fit", |script| script.node(2).unfit = Some("no".to_owned()), false),
        ("this node holds as much", |script| script.node(2).postgres.position = Some(at(4, 105)), false),
        (
            "this node's log is on an older timeline, past where the next began",
            |script| {
                script.node(2).postgres.position = Some(at(3, 91));
            },
            false,
        ),
        ("and not past it", |script| script.node(2).postgres.position = Some(at(3, 90)), true),
        ("the source has not barred, and its log grows", |script| script.node(3).durable.barred = Generation(4), false),
        (
            "it was tried just now",
            |script| {
                let now = script.time();
                script.node(2).postgres.fetch_ended_at = Some(now);
            },
            false,
        ),
        ("PostgreSQL does not run here", |script| script.node(2).guard.has_processes = false, false),
    ];
    for (case, change, expected) in cases {
        let mut script = kept_back_ahead("", 3);
        change(&mut script);
        script.tick(&[2, 3]);
        script.tick(&[2, 3]);
        assert_eq!(fetches(&script, 2), expected, "{case}: {:?}", script.plans[&2]);
        assert!(!fetches(&script, 3), "{case}");
        assert_eq!(script.plans[&2].stated.is_none(), expected, "only what stands still is stated: {case}");
    }
}

#[test]
fn an_active_node_that_is_heard_again_is_not_overtaken_by_a_fetch() {
    let mut script = kept_back_ahead("", 3);
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    assert!(!fetches(&script, 2), "it lives: {:?}", script.plans[&2]);
    // it has given up, and is fit to take the role again with all there is
    let one = script.node(1);
    one.durable.resigned = Generation(5);
    one.durable.resign_reason = Some(ResignReason::LeaseOver);
    one.guard.armed = None;
    one.postgres = hasup::ha::view::PostgresView {
        in_recovery: Some(true),
        has_standby_signal: true,
        position: Some(at(4, 110)),
        ..Default::default()
    };
    script.tick(&[1, 2, 3]);
    script.tick(&[1, 2, 3]);
    assert!(!fetches(&script, 2), "it can be chosen: {:?}", script.plans[&2]);
}

#[test]
fn of_many_the_one_that_lacks_least_fetches_and_only_where_commits_may_be_missing() {
    let mut script = kept_back_ahead("", 5);
    script.node(4).postgres.position = Some(at(4, 101));
    script.tick(&[2, 3, 4, 5]);
    script.tick(&[2, 3, 4, 5]);
    assert!(![2, 4, 5].iter().any(|node| fetches(&script, *node)), "one copy beside the primary's is no commit of two");
    script.kept_back.insert(NodeId(5));
    script.node(5).postgres.position = Some(at(4, 105));
    script.tick(&[2, 3, 4, 5]);
    script.tick(&[2, 3, 4, 5]);
    assert!(fetches(&script, 4) && !fetches(&script, 2), "{:?}", script.plans[&4]);
}

#[test]
fn a_fetch_ends_with_what_it_is_for() {
    type Change = fn(&mut Script);
    let cases: [(&str, Change, bool); 8] = [
        ("as it is", |_| (), false),
        ("PostgreSQL has not said yet where it is", |script| script.node(2).postgres.position = None, false),
        ("all is here", |script| script.node(2).postgres.position = Some(at(4, 105)), true),
        (
            "nothing has come for long",
            |script| {
                script.wait(3_001);
            },
            true,
        ),
        ("the mark was taken off", |script| script.kept_back.clear(), true),
        (
            "the source is not heard",
            |script| {
                script.wait(301);
                let now = script.time();
                script.node(2).postgres.fetch_moved_at = Some(now);
                script.node(2).pulse.peers.remove(&NodeId(3));
            },
            true,
        ),
        ("the source has lost its word", |script| script.node(3).postgres.position = None, true),
        ("a daemon that starts knows nothing of it", |script| script.node(2).postgres.fetch_moved_at = None, true),
    ];
    for (case, change, expected) in cases {
        let mut script = kept_back_ahead("", 3);
        script.tick(&[2, 3]);
        begins(&mut script, 2, 3);
        script.tick(&[2, 3]);
        change(&mut script);
        let heard: &[u64] = if case == "the source is not heard" { &[2] } else { &[2, 3] };
        script.tick(heard);
        script.tick(heard);
        assert_eq!(cuts(&script, 2), expected, "{case}: {:?}", script.plans[&2]);
        assert_eq!(script.plans[&2].waiting_on.contains(&WaitingOn::Fetch { from: NodeId(3) }), !expected, "{case}");
        assert_eq!(script.plans[&2].stated, None, "nothing is stated while a receiver is there: {case}");
    }
    // whoever is chosen meanwhile cuts it before anything else
    let mut script = kept_back_ahead("", 3);
    script.tick(&[2, 3]);
    begins(&mut script, 2, 3);
    for named in [2, 3] {
        script.record.0.generation = Generation(6);
        script.record.0.promoted = Generation(6);
        script.record.0.node = NodeId(named);
        script.record.1 += 1;
        script.node(2).durable.acknowledged = Generation(6);
        script.tick(&[2, 3]);
        let steps = &script.plans[&2].steps;
        assert!(matches!(steps.as_slice(), [Step::CutReceiver { .. }]), "node {named} is named: {steps:?}");
    }
}

#[test]
fn the_former_active_node_is_fetched_from_too_once_it_has_resigned() {
    // node 1, marked nofailover, resigned as its PostgreSQL died, runs again as a standby and holds most; node 3 is lost
    let mut script = Script::new("", 3);
    script.kept_back = [NodeId(1)].into();
    script.wait(5_000);
    for node in [2, 3] {
        script.node(node).durable.barred = Generation(5);
        script.cut(node);
    }
    script.node(2).postgres.position = Some(at(4, 99));
    let one = script.node(1);
    one.durable.resigned = Generation(5);
    one.durable.resign_reason = Some(ResignReason::PostgresFailed);
    one.guard.armed = None;
    one.postgres = hasup::ha::view::PostgresView {
        in_recovery: Some(true),
        has_standby_signal: true,
        position: Some(at(4, 105)),
        ..Default::default()
    };
    for node in [1, 2] {
        script.node(node).pulse.peers.remove(&NodeId(3));
    }
    script.tick(&[1, 2]);
    script.tick(&[1, 2]);
    script.lead(2, &[1, 2]);
    assert_eq!(script.plans[&2].steps, [Step::Fetch { from: NodeId(1), under: Generation(5) }]);
    begins(&mut script, 2, 1);
    script.tick(&[1, 2]);
    assert!(!cuts(&script, 2), "it was begun just now");
}

#[test]
fn one_node_fetches_and_not_the_next_one_beside_it() {
    let mut script = kept_back_ahead("", 5);
    script.kept_back.insert(NodeId(5));
    script.node(4).postgres.position = Some(at(4, 101));
    script.node(5).postgres.position = Some(at(4, 105));
    for _ in 0..2 {
        script.tick(&[2, 3, 4, 5]);
    }
    assert!(fetches(&script, 4) && !fetches(&script, 2));
    begins(&mut script, 4, 3);
    for _ in 0..2 {
        script.tick(&[2, 3, 4, 5]);
    }
    assert!(!fetches(&script, 2), "{:?}", script.plans[&2].steps);
}

/// A fetch of `node` from `source` has been told to its receiver.
fn begins(script: &mut Script, node: u64, source: u64) {
    let now = script.time();
    let postgres = &mut script.node(node).postgres;
    postgres.follows = Some(Followed { node: NodeId(source), generation: Generation(5) });
    postgres.has_receiver = true;
    postgres.fetch_moved_at = Some(now);
}
