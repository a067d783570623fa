//! The page of a run that never was, with text of others that would be HTML.

use std::collections::BTreeMap;

use super::*;
use crate::chaos::checkers::Verdict;
use crate::chaos::judgement::{Counts, Judgement, Work};
use crate::chaos::kinds::Kind;
use crate::chaos::proof::Proof;
use crate::chaos::report::{PassedOver, Report};
use crate::chaos::timeline::{GapRecord, Role, RoleSpan, Timelines};
use crate::chaos::view::WhyView;
use crate::types::Timeline;

const EVIL: &str = "<script>alert('1')</script> & \"quoted\"";

fn fault(at_ms: u64, step: &str, on: &str, kind: Kind, proof: Proof) -> FaultRecord {
    let why_not = match &proof {
        Proof::Cable { carrier_before: false, .. } => Some(EVIL.to_owned()),
        _ => None,
    };
    FaultRecord {
        at_ms,
        until_ms: Some(at_ms + 4000),
        kind,
        on: on.to_owned(),
        other: None,
        step: step.to_owned(),
        proof,
        bit: why_not.is_none(),
        why_not,
        at_ns: at_ms * 1_000_000,
        write_gap_ms: Some(2345.6),
    }
}

/// A run of two steps that came to nothing.
pub(in crate::chaos) fn record() -> Record {
    let power = Proof::Power { processes_before: 14, processes_after: 0, carrier: false, answers: 0 };
    let cable = Proof::Cable { carrier_before: false, carrier: false, answers: 0 };
    let faults = vec![
        fault(1000, "at 1000ms crash all", "n1", Kind::Crash, power.clone()),
        fault(1001, "at 1000ms crash all", "n2", Kind::Crash, power),
        fault(6000, "at 6000ms cut n2", "n2", Kind::Cut, cable),
    ];
    let span = |from_ms, to_ms, role| RoleSpan { from_ms, to_ms, role, timeline: Some(Timeline(3)) };
    let spans = vec![span(-1500, 1000, Role::Active), span(1000, 5000, Role::Silent), span(5000, 9000, Role::Standby)];
    let event = |at_ms, id, step: &str| EventRecord {
        at_ms,
        id,
        node: "n2".into(),
        generation: 4,
        kind: "assigned".into(),
        why: WhyView { facts: vec![EVIL.into()], rule: "L11".into(), step: step.into() },
    };
    let timeline = Timelines {
        from_ms: -1500,
        to_ms: 9000,
        roles: BTreeMap::from([("n1".to_owned(), spans), ("n2".to_owned(), Vec::new())]),
        gaps: vec![GapRecord { from_ms: 1000, to_ms: 3345, length_ms: 2345.0, client_ms: 12.0 }],
        events: vec![event(500, 6, "early"), event(3000, 7, "n2 is active"), event(7000, 8, "late")],
        ..Timelines::default()
    };
    let judgement = Judgement {
        verdict: Word::Inconclusive,
        why: vec![EVIL.into()],
        counts: Counts { bit: 2, ..Counts::default() },
    };
    let report = Report {
        ok: false,
        judgement,
        lease_ms: 2000,
        acknowledged: 500,
        failed: 0,
        unknown: 1,
        lost: 0,
        rebuilds: Vec::new(),
        longest_gap_ms: Some(2345.6),
        client_ms: Some(12.0),
        work: Some(Work { undisturbed_per_s: 150.0, calm_per_s: 140.0, calm_ms: 2000 }),
        faults,
        passed_over: vec![PassedOver { step: "at 1s boot".into(), on: None, why: EVIL.into() }],
        skipped: Vec::new(),
        verdicts: vec![Verdict::new("one_writer", 5, true, vec![EVIL.into()])],
        error: None,
    };
    Record {
        report,
        seed: None,
        duration_ms: None,
        hosts: 3,
        allow_skip: Vec::new(),
        version: "0.1.0".into(),
        schedule: "at 1s crash all # <b>\nend 9s\n".into(),
        timeline,
    }
}

#[test]
fn the_page_stands_alone_and_escapes_everything() {
    let mut evil = record();
    let text = || EVIL.to_owned();
    (evil.version, evil.schedule) = (text(), text());
    for fault in &mut evil.report.faults {
        (fault.on, fault.other, fault.step) = (text(), Some(text()), format!("at 1s {EVIL}"));
    }
    for event in &mut evil.timeline.events {
        (event.node, event.kind, event.why.rule, event.why.step) = (text(), text(), text(), text());
    }
    let spans = evil.timeline.roles["n1"].clone();
    evil.timeline.roles.insert(text(), spans);
    for page in [page(&record()), page(&evil)] {
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script") && !page.contains("<b>\n"), "{page}");
        assert!(!page.contains("'1'") && !page.contains("\"quoted\""), "it would end an attribute\n{page}");
        for outside in ["http://", "https://", "src=", "@import", "url(", "<link", "javascript"] {
            let allowed = if outside == "http://" { 1 } else { 0 };
            assert_eq!(page.matches(outside).count(), allowed, "{outside}: the name of SVG alone");
        }
    }
}

#[test]
fn every_tag_is_closed() {
    let page = page(&record());
    let mut open: Vec<&str> = Vec::new();
    for piece in page.split('<').skip(1) {
        let tag = piece.split('>').next().unwrap();
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
        } else if !tag.ends_with('/') && !["!doctype", "meta", "br"].contains(&name) {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}

#[test]
fn each_step_stands_with_its_proof_and_with_what_the_cluster_did_about_it() {
    let page = page(&record());
    // Behind the drawing, whose tooltips tell the same.
    let story = page.split("</svg>").nth(1).unwrap();
    let place = |text: &str| story.find(text).unwrap_or_else(|| panic!("{text} is not there\n{story}"));
    let order = [
        "id=\"event0\"",
        "id=\"step1\"",
        "14 processes before, 0 after; the cable does not carry; 0 requests answered",
        "id=\"event1\"",
        "id=\"step2\"",
        "not proven, as &lt;script",
        "id=\"event2\"",
        "<h2>Checkers</h2>",
    ];
    let places: Vec<usize> = order.iter().map(|text| place(text)).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(page.matches("id=\"step").count(), 2, "one step of two hosts is told once");
    for drawn in [
        "<title>n1: active, timeline 3, -1.50 s to 1.00 s</title>",
        "2.35 s</text>",
        "href=\"#step1\"",
        "href=\"#event2\"",
    ] {
        assert!(page.contains(drawn), "{drawn}");
    }
}

#[test]
fn events_have_names_in_order() {
    assert_eq!([0, 25, 26, 27, 52, 701, 702].map(letter), ["a", "z", "aa", "ab", "ba", "zz", "aaa"]);
}
