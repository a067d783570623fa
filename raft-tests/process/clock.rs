//! Wall clocks that are wrong, or that somebody sets: each node has its own, by a library that is loaded before libc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use raft_tests::program::{alone, lacks_postgres, skip};

use crate::node::{Node, is_whole, pause, until_check};

const HOUR: i64 = 3600;
/// What one write may take while clocks are set, on a busy machine: less than any wait for a lease of two seconds.
const WRITE_LIMIT: Duration = Duration::from_millis(1500);

/// Makes the library below `folder`; none where there is no C compiler.
fn library(folder: &Path) -> Option<PathBuf> {
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    fs::write(&source, include_str!("clock.c")).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).arg("-ldl").status();
    built.is_ok_and(|ended| ended.success()).then_some(library)
}

/// Gives `node` a wall clock of its own.
fn own_clock(node: &mut Node, library: &Path) {
    let file = node.folder.path().join("clock");
    fs::write(&file, 0_i64.to_ne_bytes()).unwrap();
    node.environment = vec![("LD_PRELOAD", library.to_owned()), ("HASUPTEST_CLOCK", file)];
}

/// Sets the clock of `node` to so many seconds before or after the machine's.
fn set_clock(node: &Node, off: i64) {
    // in place: the running processes have it mapped
    let file = fs::File::options().write(true).open(node.folder.path().join("clock")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &off.to_ne_bytes(), 0).unwrap();
}

/// Returns by how many seconds PostgreSQL's clock on `node` differs from this process's.
fn seen_by_postgres(node: &Node) -> i64 {
    let there: i64 = node.sql("select extract(epoch from clock_timestamp())::bigint").parse().unwrap();
    there - i64::try_from(hasup::sys::clock::wall_now().as_secs()).unwrap()
}

#[test]
fn clocks_an_hour_off_hinder_no_join_and_steps_of_an_hour_hold_up_no_write() {
    let name = "clocks_an_hour_off_hinder_no_join_and_steps_of_an_hour_hold_up_no_write";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let [mut one, mut two, mut three] = [Node::new(81), Node::new(82), Node::new(83)];
    let Some(library) = library(one.folder.path()) else {
        return skip(name, "no C compiler `cc`");
    };
    for node in [&mut one, &mut two, &mut three] {
        own_clock(node, &library);
    }
    let started = one.start(&[]);
    let token = started["join_token"].as_str().unwrap();
    assert!(seen_by_postgres(&one).abs() < 5, "{}", seen_by_postgres(&one));

    // two days back: refused, with the reason, and nothing was shown to anybody
    set_clock(&two, -48 * HOUR);
    let words = ["clocks of this machine and of", "certificate holds from", "token was not shown", "timedatectl"];
    two.refused(&["join", &one.peer(), "--token", token]).fails(3, &words);
    // half a year ahead, as of an empty battery the other way round
    set_clock(&two, 24 * 180 * HOUR);
    two.refused(&["join", &one.peer(), "--token", token]).fails(3, &["clocks", "certificate holds until"]);

    set_clock(&two, -59 * HOUR / 60);
    two.join(&one, token);
    set_clock(&three, 59 * HOUR / 60);
    three.join(&one, token);
    one.until("three voters", is_whole);
    assert!((seen_by_postgres(&two) + 59 * 60).abs() < 5, "{}", seen_by_postgres(&two));

    // steps under load
    for node in [&one, &two, &three] {
        set_clock(node, 0);
    }
    one.sql("create table beats (n int primary key, at timestamptz default now())");
    let generation = |node: &Node| node.json(&["status"])["cluster"]["generation"].clone();
    let before = generation(&one);
    let is_over = AtomicBool::new(false);
    let (count, longest) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut count, mut longest) = (0_u32, Duration::ZERO);
            while !is_over.load(Ordering::Relaxed) {
                let began = Instant::now();
                one.sql(&format!("insert into beats values ({count})"));
                longest = longest.max(began.elapsed());
                count += 1;
            }
            (count, longest)
        });
        let seconds = |limit: u64| {
            let until = Instant::now() + Duration::from_secs(limit);
            while Instant::now() < until && !writer.is_finished() {
                pause();
            }
        };
        // past leases, pulses and elections each time
        seconds(1);
        for node in [&one, &two, &three] {
            set_clock(node, HOUR);
            seconds(3);
            set_clock(node, -2 * HOUR);
            seconds(3);
            set_clock(node, 0);
        }
        for off in [HOUR, -2 * HOUR, 0] {
            for node in [&one, &two, &three] {
                set_clock(node, off);
            }
            seconds(3);
        }
        is_over.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    println!("{count} writes, the longest {longest:?}");
    assert!(longest < WRITE_LIMIT, "a write took {longest:?}");
    assert_eq!(generation(&one), before, "the role moved");
    assert_eq!(one.sql("select count(*) from beats"), count.to_string());
    one.until("all as before", is_whole);

    // so far back that it can connect to nobody anew: told by every node, and over once the clock is right
    set_clock(&two, -72 * HOUR);
    two.kill_daemon();
    two.run();
    let told = "by n82's clock the certificate of another member does not hold";
    for node in [&one, &two, &three] {
        until_check(node, told, |ended| ended.code == Some(2) && ended.out.contains(told));
    }
    set_clock(&two, 0);
    until_check(&one, "nothing more of it", |ended| !ended.out.contains("clock"));
    one.until("all as before", is_whole);

    // a token's life is told by the clock of the member that is asked
    let short = one.json(&["token", "create", "--ttl", "30m"]);
    let short = short["join_token"].as_str().unwrap();
    let mut fourth = Node::new(84);
    own_clock(&mut fourth, &library);
    set_clock(&one, HOUR);
    fourth.refused(&["join", &one.peer(), "--token", short]).fails(3, &["expired", "by the clock of the member"]);
    set_clock(&one, 0);
    for node in [&one, &two, &three] {
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}
