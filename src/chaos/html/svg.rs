//! The drawing: time runs to the right, a band for each node.
//!
//! A band holds, from above: the faults that the node suffered, what its role endpoint said, and the writes that it acknowledged.
//! Gaps and the cluster's events have bands of their own.

use std::fmt::Write;

use super::{Step, escaped, letter, seconds};
use crate::chaos::report::{FaultRecord, Record};
use crate::chaos::timeline::Role;

const ACTIVE: &str = "#1b7837";
const STANDBY: &str = "#a9c3d9";
const STOPPED: &str = "#e3b169";
const SILENT: &str = "#e3e6e8";
const WRITES: &str = "#2166ac";
const GAP: &str = "#d6604d";
const FAULT: &str = "#8e4b9e";
const EVENT: &str = "#fff3c4";
/// Of a step that takes another one back.
const UNDO: &str = "#b9c2c9";
/// Of words on the page's own ground: about a fault, about less than that.
const FAULT_INK: &str = "#5b2a69";
const QUIET_INK: &str = "#56636d";

/// Every colour, and what it means.
pub(super) const LEGEND: &[(&str, &str)] = &[
    (FAULT, "fault in force"),
    (ACTIVE, "active: holds the lease and takes writes"),
    (STANDBY, "not active, PostgreSQL runs"),
    (STOPPED, "not active, PostgreSQL does not run"),
    (SILENT, "no answer"),
    (WRITES, "acknowledged writes"),
    (GAP, "write gap"),
];

/// Where the bands begin, the place for words behind their end, and how wide a drawing may be.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 120.0;
const WIDTH: std::ops::RangeInclusive<f64> = 1080.0..=9000.0;
const PER_SECOND: f64 = 15.0;
/// Heights: of a lane of faults or events, of the bar of roles, of the bar of writes.
const LANE: f64 = 17.0;
const ROLE: f64 = 20.0;
const WRITE: f64 = 7.0;
/// About the width of a letter of 11 pixels.
const LETTER: f64 = 6.3;

struct Scale {
    from_ms: i64,
    per_ms: f64,
}

impl Scale {
    fn x(&self, ms: i64) -> f64 {
        LEFT + (ms - self.from_ms) as f64 * self.per_ms
    }
}

/// Places things side by side: each takes the first lane that is free where it begins.
#[derive(Default)]
struct Lanes(Vec<f64>);

impl Lanes {
    fn place(&mut self, from: f64, to: f64) -> usize {
        let free = self.0.iter().position(|end| *end <= from);
        let lane = free.unwrap_or_else(|| {
            self.0.push(0.0);
            self.0.len() - 1
        });
        self.0[lane] = to;
        lane
    }

    fn height(&self) -> f64 {
        self.0.len() as f64 * LANE
    }
}

/// Draws a run.
pub(super) fn draw(record: &Record, steps: &[Step<'_>]) -> String {
    let timeline = &record.timeline;
    let length = (timeline.to_ms - timeline.from_ms).max(1000) as f64;
    let width = (length / 1000.0 * PER_SECOND).clamp(*WIDTH.start(), *WIDTH.end());
    let scale = Scale { from_ms: timeline.from_ms, per_ms: width / length };
    let mut body = String::new();
    let mut y = 6.0;
    y += step_band(&mut body, &scale, steps, y);
    let axis_y = y;
    y += 22.0;
    let top = y;
    for (node, spans) in &timeline.roles {
        let _ = writeln!(body, "<text x=\"8\" y=\"{:.1}\" font-weight=\"600\">{}</text>", y + 13.0, escaped(node));
        y += fault_lanes(&mut body, &scale, steps, node, y);
        for span in spans {
            let (colour, word) = match span.role {
                Role::Active => (ACTIVE, "active"),
                Role::Standby => (STANDBY, "standby"),
                Role::Stopped => (STOPPED, "stopped"),
                Role::Silent => (SILENT, "no answer"),
            };
            let on = span.timeline.map_or_else(String::new, |timeline| format!(", timeline {timeline}"));
            let title = format!("{node}: {word}{on}, {} to {}", seconds(span.from_ms), seconds(span.to_ms));
            let (from, to) = (scale.x(span.from_ms), scale.x(span.to_ms));
            bar(&mut body, from, to, y, ROLE, colour, &title);
            let label = match (span.role, span.timeline) {
                (Role::Active, Some(timeline)) => format!("active, timeline {timeline}"),
                _ => word.to_owned(),
            };
            let ink = if span.role == Role::Active { "#fff" } else { "#33404a" };
            let shorter = if to - from < width_of(&label) + 8.0 { word.to_owned() } else { label };
            if to - from > width_of(&shorter) + 8.0 {
                let _ = writeln!(
                    body,
                    "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{ink}\" pointer-events=\"none\">{shorter}</text>",
                    from + 4.0,
                    y + 14.0
                );
            }
        }
        y += ROLE + 2.0;
        for work in timeline.writes.iter().filter(|work| work.node == *node) {
            let on = work.timeline.map_or_else(String::new, |timeline| format!(" on timeline {timeline}"));
            let (from, to) = (seconds(work.from_ms), seconds(work.to_ms));
            let title = format!("{node} acknowledged {} rows{on}, {from} to {to}", work.rows);
            bar(&mut body, scale.x(work.from_ms), scale.x(work.to_ms), y, WRITE, WRITES, &title);
        }
        y += WRITE + 12.0;
    }
    y += gap_band(&mut body, record, &scale, y);
    y += event_band(&mut body, record, &scale, y);
    let height = y + 4.0;
    let mut back = String::new();
    axis(&mut back, &scale, timeline.to_ms, axis_y, height);
    for step in steps {
        let x = scale.x(step.at_ms);
        let colour = if step.undoes() { UNDO } else { FAULT };
        let _ = writeln!(
            back,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-dasharray=\"2 3\"/>",
            top - 6.0,
            height - 4.0
        );
    }
    let total = LEFT + width + RIGHT;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{total:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {total:.0} {height:.0}\" \
         font-family=\"system-ui,sans-serif\" font-size=\"11\" role=\"img\" aria-label=\"timeline of the run\">\n{back}{body}</svg>"
    )
}

fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * LETTER
}

fn bar(body: &mut String, from: f64, to: f64, y: f64, height: f64, colour: &str, title: &str) {
    let width = (to - from).max(1.5);
    let title = escaped(title);
    let _ = writeln!(
        body,
        "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" rx=\"1.5\" fill=\"{colour}\"><title>{title}</title></rect>"
    );
}

fn axis(back: &mut String, scale: &Scale, to_ms: i64, y: f64, height: f64) {
    let apart = [1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 3_600_000];
    let every = apart.into_iter().find(|ms| *ms as f64 * scale.per_ms >= 64.0).unwrap_or(3_600_000);
    let mut at = scale.from_ms.div_euclid(every) * every;
    while at <= to_ms {
        if at >= scale.from_ms {
            let x = scale.x(at);
            let _ = writeln!(
                back,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{height:.1}\" stroke=\"#eef1f3\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" fill=\"{QUIET_INK}\" text-anchor=\"middle\">{} s</text>",
                y + 16.0,
                y + 12.0,
                at / 1000
            );
        }
        at += every;
    }
}

/// Draws every step with its number and its words, above the bands.
fn step_band(body: &mut String, scale: &Scale, steps: &[Step<'_>], y: f64) -> f64 {
    let mut lanes = Lanes::default();
    for step in steps {
        let x = scale.x(step.at_ms);
        let words = step.words();
        let number = step.number.to_string();
        let badge = width_of(&number) + 9.0;
        let lane = lanes.place(x, x + badge + width_of(&words) + 14.0);
        let top = y + lane as f64 * LANE;
        let (colour, ink) = if step.undoes() { (UNDO, QUIET_INK) } else { (FAULT, FAULT_INK) };
        let title = escaped(format!("{} at {}", step.step, seconds(step.at_ms)));
        let words = escaped(words);
        let _ = writeln!(
            body,
            "<a href=\"#step{number}\"><rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{badge:.1}\" height=\"14\" rx=\"7\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#fff\" text-anchor=\"middle\" font-weight=\"600\">{number}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{ink}\">{words}</text><title>{title}</title></a>",
            x + badge / 2.0,
            top + 10.8,
            x + badge + 3.0,
            top + 10.8
        );
    }
    lanes.height() + 2.0
}

/// Draws the faults that a node suffered, and returns how high that is.
fn fault_lanes(body: &mut String, scale: &Scale, steps: &[Step<'_>], node: &str, y: f64) -> f64 {
    let mut lanes = Lanes::default();
    for step in steps.iter().filter(|step| !step.undoes()) {
        let suffers = |fault: &&&FaultRecord| fault.on == node || fault.other.as_deref() == Some(node);
        for fault in step.faults.iter().filter(suffers) {
            let from = scale.x(step.at_ms);
            let to = fault.until_ms.map_or(from + 7.0, |until| scale.x(i64::try_from(until).unwrap_or(i64::MAX)));
            let word = fault.kind.to_string();
            let inside = to - from > width_of(&word) + 8.0;
            let end = if inside { to } else { to + width_of(&word) + 6.0 };
            let lane = lanes.place(from, end + 2.0);
            let top = y + lane as f64 * LANE;
            let how = fault.why_not.as_ref().map_or("it bit".to_owned(), |why| format!("it did not bite: {why}"));
            let title = format!("{} ({}): {how}; {}", step.words(), seconds(step.at_ms), fault.proof);
            let colour = if fault.bit { FAULT } else { "#fff" };
            let _ = writeln!(
                body,
                "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"14\" rx=\"2\" fill=\"{colour}\" stroke=\"{FAULT}\"><title>{}</title></rect>",
                (to - from).max(2.0),
                escaped(title)
            );
            let (x, ink) = if inside && fault.bit {
                (from + 4.0, "#fff")
            } else if inside {
                (from + 4.0, FAULT)
            } else {
                (to + 3.0, FAULT_INK)
            };
            let _ = writeln!(
                body,
                "<text x=\"{x:.1}\" y=\"{:.1}\" fill=\"{ink}\" pointer-events=\"none\">{word}</text>",
                top + 10.8
            );
        }
    }
    // The node's name stands here, so there is a lane also where nothing was done to it.
    lanes.height().max(LANE) + 1.0
}

fn gap_band(body: &mut String, record: &Record, scale: &Scale, y: f64) -> f64 {
    if record.timeline.gaps.is_empty() {
        return 0.0;
    }
    let _ = writeln!(body, "<text x=\"8\" y=\"{:.1}\" font-weight=\"600\">write gaps</text>", y + 11.0);
    let mut free = 0.0;
    for gap in &record.timeline.gaps {
        let (from, to) = (scale.x(gap.from_ms), scale.x(gap.to_ms));
        let title = format!(
            "no write was acknowledged to the client outside for {} ms, {} to {}",
            gap.length_ms,
            seconds(gap.from_ms),
            seconds(gap.to_ms)
        );
        bar(body, from, to, y + 2.0, 12.0, GAP, &title);
        let label = format!("{:.2} s", gap.length_ms / 1000.0);
        if to + 3.0 >= free {
            let _ = writeln!(body, "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#8c2d1c\">{label}</text>", to + 3.0, y + 12.0);
            free = to + 3.0 + width_of(&label) + 4.0;
        }
    }
    24.0
}

fn event_band(body: &mut String, record: &Record, scale: &Scale, y: f64) -> f64 {
    if record.timeline.events.is_empty() {
        return 0.0;
    }
    let _ = writeln!(body, "<text x=\"8\" y=\"{:.1}\" font-weight=\"600\">history</text>", y + 12.0);
    let mut lanes = Lanes::default();
    for (index, event) in record.timeline.events.iter().enumerate() {
        let x = scale.x(event.at_ms);
        let name = letter(index);
        let badge = width_of(&name) + 9.0;
        let kind = event.kind.replace('_', " ");
        let lane = lanes.place(x, x + badge + width_of(&kind) + 10.0);
        let top = y + lane as f64 * LANE;
        let facts = event.why.facts.iter().map(|fact| format!("\n- {fact}")).collect::<String>();
        let title = format!("{} {}: {} ({}){facts}", seconds(event.at_ms), event.kind, event.why.step, event.why.rule);
        let _ = writeln!(
            body,
            "<a href=\"#event{index}\"><rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{badge:.1}\" height=\"14\" rx=\"7\" fill=\"{EVENT}\" stroke=\"#b58900\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-weight=\"600\">{name}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#33404a\">{}</text><title>{}</title></a>",
            x + badge / 2.0,
            top + 10.8,
            x + badge + 3.0,
            top + 10.8,
            escaped(kind),
            escaped(title)
        );
    }
    lanes.height() + 6.0
}
