//! The guard fences by itself, whatever becomes of the daemon.

use std::os::unix::process::CommandExt;
use std::time::Duration;

use hasup::guard::procs::{processes_of, send};
use hasup::guard::{DeadlineSender, StopMode};
use hasup::postgres::{PostgresFacts, WriteProbe};
use hasup::sys::clock::boot_now;
use hasup::types::Generation;
use rustix::process::Signal;
use tokio::time::sleep;

use crate::fixture::{Cluster, LIMIT, connect, eventually, goes_on, members, start_guard};

/// Aim: a primary whose daemon says nothing more is gone at the deadline, one whose lease is extended lives on. Method: arm
/// 500 ms, extend by datagrams for 1.5 s, then stop extending.
#[tokio::test(flavor = "multi_thread")]
async fn primary_lives_while_its_deadline_is_extended_and_is_killed_at_it() {
    if !goes_on("guard::primary_lives_while_its_deadline_is_extended_and_is_killed_at_it") {
        return;
    }
    let cluster = Cluster::new();
    let node = cluster.primary(1).await;
    assert!(matches!(node.postgres.probe_write(LIMIT).await.unwrap(), WriteProbe::Written(_)));
    // A new generation shortens: that is what a new lease does.
    node.arm(2, Duration::from_millis(500)).await;
    let sender = DeadlineSender::open(&node.data_dir()).unwrap();
    let began = boot_now();
    while boot_now().since(began) < Duration::from_millis(1500) {
        sender.extend(Generation(2), boot_now() + Duration::from_millis(500)).unwrap();
        sender.extend(Generation(1), boot_now() + Duration::from_secs(900)).unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    let status = node.guard.status().await.unwrap();
    assert!(status.fence.is_none() && status.postgres.is_some(), "{status:?}");
    let deadline = status.lease.unwrap().deadline;

    let status =
        node.guard.wait_until(LIMIT, |status| status.fence.is_some_and(|f| f.complete.is_some())).await.unwrap();
    let fence = status.fence.unwrap();
    assert!(fence.begun >= deadline.before(Duration::from_millis(100)), "{status:?} began before {deadline}");
    assert!(
        fence.complete.unwrap() < deadline + Duration::from_millis(100),
        "{status:?} complete long after {deadline}"
    );
    assert_eq!((status.fenced, status.processes_left), (Some(Generation(2)), false));
    assert!(processes_of(status.guard_pid, Some(&node.postgres.layout().pgdata)).is_empty());
    assert_eq!(node.postgres.observe(LIMIT).await, PostgresFacts::Stopped);
}

/// Aim: a frozen postmaster, which ignores SIGQUIT, and its backends are gone at the deadline too.
#[tokio::test(flavor = "multi_thread")]
async fn frozen_postgresql_is_killed_at_the_deadline_with_all_its_processes() {
    if !goes_on("guard::frozen_postgresql_is_killed_at_the_deadline_with_all_its_processes") {
        return;
    }
    let cluster = Cluster::new();
    let node = cluster.primary(1).await;
    let status = node.guard.status().await.unwrap();
    for pid in processes_of(status.guard_pid, None) {
        send(pid, Signal::STOP);
    }
    node.arm(2, Duration::from_millis(400)).await;
    let status = node.guard.wait_until(LIMIT, |status| !status.processes_left).await.unwrap();
    assert_eq!(status.last_exit.unwrap().signal, Some(9), "{status:?}");
}

/// Aim: what a power cut leaves behind never keeps PostgreSQL from starting. Method: `postmaster.pid` and
/// the lock of the socket name a living process of the same user that is no PostgreSQL, as a thread of hasup's daemon is after a reboot
/// that gives out the same numbers; or the lock is empty.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_process_id_does_not_keep_postgresql_from_starting() {
    if !goes_on("guard::a_stale_process_id_does_not_keep_postgresql_from_starting") {
        return;
    }
    let cluster = Cluster::new();
    let node = cluster.primary(1).await;
    node.stop().await;
    let layout = node.postgres.layout();
    let mut other = std::process::Command::new("sleep");
    other.arg("600");
    if let Some((user, group)) = layout.owner {
        other.uid(user).gid(group);
    }
    let mut other = other.spawn().unwrap();
    let stale = format!("{}\n{}\n", other.id(), layout.pgdata.display());
    // Left behind by PostgreSQL's own hand, so that the test knows neither folder nor port.
    node.start(None).await;
    node.answers().await;
    let sockets = std::fs::read_dir(layout.socket_dir()).unwrap().flatten().map(|entry| entry.path());
    let locks: Vec<_> = sockets.filter(|path| path.extension().is_some_and(|kind| kind == "lock")).collect();
    assert_eq!(locks.len(), 1, "{locks:?}");
    node.stop().await;
    for left in [stale.as_str(), ""] {
        // as if that had been the number of its own
        std::fs::write(layout.data_dir.join("guard.postgres"), other.id().to_string()).unwrap();
        std::fs::write(layout.pgdata.join("postmaster.pid"), &stale).unwrap();
        std::fs::write(&locks[0], left).unwrap();
        node.start(None).await;
        node.answers().await;
        node.stop().await;
    }
    other.kill().unwrap();
    other.wait().unwrap();
    // what it wrote itself before it was killed goes too
    node.start(None).await;
    node.answers().await;
    let left = std::fs::read(layout.pgdata.join("postmaster.pid")).unwrap();
    node.stop().await;
    std::fs::write(layout.pgdata.join("postmaster.pid"), &left).unwrap();
    node.start(None).await;
    node.answers().await;
    node.stop().await;
    // what a server in a container left or holds does not
    let file = layout.pgdata.join("postmaster.pid");
    std::fs::write(&file, format!("1\n{}\n1\n5432\n/var/run/postgresql\n", layout.pgdata.display())).unwrap();
    let spec = node.postgres.prepare_start(None, &members()).await.unwrap();
    let refused = node.guard.start_postgres(spec).await.unwrap_err().to_string();
    assert!(refused.contains("another container") && file.exists(), "{refused}");
}

/// Aim: neither a lost daemon nor a new one disturbs PostgreSQL, and the new one finds generation and deadline; the death of the
/// guard itself ends PostgreSQL, and its successor starts it again only as a standby.
#[tokio::test(flavor = "multi_thread")]
async fn daemon_is_replaced_unnoticed_and_the_guards_death_is_a_fence() {
    if !goes_on("guard::daemon_is_replaced_unnoticed_and_the_guards_death_is_a_fence") {
        return;
    }
    let cluster = Cluster::new();
    let node = cluster.primary(1).await;
    let before = node.guard.status().await.unwrap();
    let (second, tasks) = connect(node.postgres.layout()).await;
    drop(tasks);
    drop(second);
    let (third, _tasks) = connect(node.postgres.layout()).await;
    let after = third.status().await.unwrap();
    assert_eq!((after.postgres, after.lease), (before.postgres, before.lease));

    send(after.guard_pid, Signal::KILL);
    let pgdata = node.postgres.layout().pgdata.clone();
    eventually("PostgreSQL dies with its guard", async || {
        let left = processes_of(u32::MAX, Some(&pgdata));
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;

    let (fourth, _tasks) = start_guard(node.postgres.layout()).await;
    let spec = node.postgres.prepare_start(None, &members()).await.unwrap();
    std::fs::remove_file(node.postgres.layout().standby_signal()).unwrap();
    let refused = fourth.start_postgres(spec.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("standby.signal"), "{refused}");
    node.postgres.layout().put_standby_signal().unwrap();
    fourth.start_postgres(spec).await.unwrap();
    node.answers().await;
    // what the lost guard was armed for, its successor is not
    let refused = fourth.promote(Generation(1)).await.unwrap_err().to_string();
    assert!(refused.contains("not armed") && !pgdata.join("promote").exists(), "{refused}");
    let stopped = fourth.stop(StopMode::Immediate { kill_after: Duration::from_millis(200) }).await.unwrap();
    assert!(stopped.postgres.is_none() && !stopped.processes_left);
    send(stopped.guard_pid, Signal::KILL);
}
