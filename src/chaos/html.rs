//! The report as one page: a file without anything from elsewhere, readable without a script.
//!
//! Pure. The drawing is in `svg`, tooltips are its titles; below it, each fault stands with its proof and with what the cluster did
//! about it, and why.

use std::fmt::{Display, Write};

use super::checkers::Found;
use super::judgement::Word;
use super::report::{FaultRecord, Record};
use super::timeline::EventRecord;

mod svg;

const STYLE: &str = "\
:root{color-scheme:light}\
body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;padding:0 1.5rem;max-width:90rem;color:#1c2329;background:#fff}\
h1{font-size:1.5rem;margin:0 0 .4rem}h2{font-size:1.15rem;margin:2rem 0 .5rem}h3{font-size:1rem;margin:0}\
.word{display:inline-block;padding:.1rem .7rem;border-radius:1rem;color:#fff;font-weight:600}\
.ok{background:#1b7837}.violated{background:#b2182b}.inconclusive{background:#8a5a00}\
.figures{display:flex;flex-wrap:wrap;gap:.3rem 2rem;margin:.8rem 0;padding:0;list-style:none}.figures b{font-size:1.15rem}\
.scroll{overflow-x:auto;border:1px solid #d5dbe0;border-radius:6px;background:#fcfdfd}\
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:.5rem 0;font-size:.87rem;padding:0;list-style:none}\
.legend i{display:inline-block;width:1.3rem;height:.75rem;border-radius:2px;margin-right:.35rem;vertical-align:-1px}\
table{border-collapse:collapse;font-size:.9rem}td,th{text-align:left;vertical-align:top;padding:.25rem .9rem .25rem 0;\
border-bottom:1px solid #e4e8eb}th{font-weight:600}\
.step{border-left:4px solid #8e4b9e;margin:.9rem 0;padding:.15rem 0 .15rem .8rem}.step.undo{border-color:#b9c2c9}\
.step p{margin:.15rem 0}.quiet{color:#56636d}.bad{color:#b2182b;font-weight:600}\
.event{margin:.35rem 0 .35rem 1.2rem}.event ul{margin:.1rem 0 .1rem 1.2rem;padding:0;font-size:.9rem}\
code,pre{font:13px/1.4 ui-monospace,monospace}pre{background:#f5f7f8;padding:.8rem;border-radius:6px;overflow-x:auto}\
.n{display:inline-block;min-width:1.5rem;padding:0 .3rem;border-radius:.8rem;text-align:center;font-size:.8rem;font-weight:600}\
.nf{background:#8e4b9e;color:#fff}.ne{background:#fff3c4;border:1px solid #b58900}";

/// Writes the page of a run.
#[must_use]
pub fn page(record: &Record) -> String {
    let report = &record.report;
    let steps = steps(&report.faults);
    let word = report.judgement.verdict;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>hasup chaos: {word}</title>\
         <style>{STYLE}</style></head><body>\n",
        word = word.as_str(),
    );
    head(&mut page, record);
    page.push_str("<h2>Timeline</h2>\n");
    legend(&mut page);
    let _ = writeln!(page, "<div class=\"scroll\">{}</div>", svg::draw(record, &steps));
    page.push_str("<h2>What was done, what shows it, and what the cluster did</h2>\n");
    story(&mut page, record, &steps);
    page.push_str("<h2>Checkers</h2>\n");
    checkers(&mut page, record);
    gaps(&mut page, record);
    left_out(&mut page, record);
    let _ = write!(page, "<h2>Schedule</h2>\n<pre>{}</pre>\n</body></html>\n", escaped(&record.schedule));
    page
}

/// A step with every host that it was done to.
struct Step<'a> {
    number: usize,
    step: &'a str,
    at_ms: i64,
    faults: Vec<&'a FaultRecord>,
}

impl Step<'_> {
    fn undoes(&self) -> bool {
        self.faults.first().is_some_and(|fault| fault.kind.undoes())
    }

    /// The statement without its time.
    fn words(&self) -> String {
        self.step.split(' ').skip(2).collect::<Vec<_>>().join(" ")
    }
}

fn steps(faults: &[FaultRecord]) -> Vec<Step<'_>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    for fault in faults {
        match steps.last_mut() {
            Some(last) if last.step == fault.step && last.faults.iter().all(|other| other.on != fault.on) => {
                last.faults.push(fault);
            }
            _ => steps.push(Step {
                number: steps.len() + 1,
                step: &fault.step,
                at_ms: i64::try_from(fault.at_ms).unwrap_or(i64::MAX),
                faults: vec![fault],
            }),
        }
    }
    steps
}

fn head(page: &mut String, record: &Record) {
    let report = &record.report;
    let word = report.judgement.verdict.as_str();
    let what = record.seed.map_or_else(|| "a schedule".to_owned(), |seed| format!("faults by chance of seed {seed}"));
    let _ = writeln!(
        page,
        "<h1>hasup chaos <span class=\"word {word}\">{word}</span></h1>\n<p class=\"quiet\">{what} on {} hosts, hasup {}</p>",
        record.hosts,
        escaped(&record.version),
    );
    if report.judgement.verdict != Word::Ok {
        page.push_str("<ul>\n");
        for why in &report.judgement.why {
            let _ = writeln!(page, "<li class=\"bad\">{}</li>", escaped(why));
        }
        page.push_str("</ul>\n");
    }
    let counts = report.judgement.counts;
    let ms = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |ms| format!("{ms} ms"));
    let mut figures = vec![
        (format!("{}", report.acknowledged), "rows acknowledged"),
        (format!("{}", report.lost), "of them lost"),
        (format!("{}", report.unknown), "rows of unknown fate"),
        (ms(report.longest_gap_ms), "longest write gap"),
        (format!("{} ms", report.lease_ms), "lease"),
        (format!("{} of {}", counts.bit, counts.bit + counts.did_not_bite), "steps were seen to bite"),
        (format!("{} of {}", counts.kept, counts.kept + counts.broken + counts.without_input), "promises kept"),
    ];
    if let Some(work) = report.work {
        let rates = format!("{} → {}", work.undisturbed_per_s, work.calm_per_s);
        figures.push((rates, "writes a second, before the first fault → in later times without one"));
    }
    page.push_str("<ul class=\"figures\">\n");
    for (figure, name) in figures {
        let _ = writeln!(page, "<li><b>{figure}</b> {name}</li>");
    }
    page.push_str("</ul>\n");
}

fn legend(page: &mut String) {
    page.push_str("<ul class=\"legend\">\n");
    for (colour, name) in svg::LEGEND {
        let _ = writeln!(page, "<li><i style=\"background:{colour}\"></i>{name}</li>");
    }
    page.push_str(
        "<li><span class=\"n nf\">1</span> a step, as numbered below</li>\n\
         <li><span class=\"n ne\">a</span> an event of the cluster's history</li>\n</ul>\n",
    );
}

/// Tells each step with its proof, and the events up to the next step.
fn story(page: &mut String, record: &Record, steps: &[Step<'_>]) {
    let events = &record.timeline.events;
    let mut told = 0;
    let mut tell_until = |page: &mut String, until: i64| {
        while let Some(event) = events.get(told).filter(|event| event.at_ms < until) {
            tell_event(page, told, event);
            told += 1;
        }
    };
    tell_until(page, steps.first().map_or(i64::MAX, |step| step.at_ms));
    for (index, step) in steps.iter().enumerate() {
        let class = if step.undoes() { "step undo" } else { "step" };
        let _ = writeln!(
            page,
            "<div class=\"{class}\" id=\"step{n}\"><h3><span class=\"n nf\">{n}</span> {words} <span class=\"quiet\">at {at}</span></h3>",
            n = step.number,
            words = escaped(step.words()),
            at = seconds(step.at_ms),
        );
        for fault in &step.faults {
            tell_proof(page, fault);
        }
        tell_until(page, steps.get(index + 1).map_or(i64::MAX, |next| next.at_ms));
        page.push_str("</div>\n");
    }
}

fn tell_proof(page: &mut String, fault: &FaultRecord) {
    let with = fault.other.as_ref().map_or_else(String::new, |other| format!(" and {other}"));
    let lasted = fault.until_ms.map_or_else(String::new, |until| {
        format!(", for {}", seconds(i64::try_from(until.saturating_sub(fault.at_ms)).unwrap_or(i64::MAX)))
    });
    let gap = match fault.write_gap_ms {
        Some(gap) if !fault.kind.undoes() => format!("; longest write gap up to the next step: {gap} ms"),
        _ => String::new(),
    };
    let verdict = match &fault.why_not {
        None if fault.kind.undoes() => "done: ".to_owned(),
        None => "it bit: ".to_owned(),
        Some(why) => format!("<span class=\"bad\">not proven, as {}</span>: ", escaped(why)),
    };
    let on = escaped(format!("{}{with}{lasted}", fault.on));
    let proof = escaped(&fault.proof);
    let _ = writeln!(page, "<p>{on} — {verdict}<span class=\"quiet\">{proof}{gap}</span></p>");
}

fn tell_event(page: &mut String, index: usize, event: &EventRecord) {
    let _ = write!(
        page,
        "<div class=\"event\" id=\"event{index}\"><span class=\"n ne\">{letter}</span> {at} <b>{kind}</b>: {step} \
         <span class=\"quiet\">({rule}; generation {generation}, told by {node})</span>",
        letter = letter(index),
        at = seconds(event.at_ms),
        kind = escaped(&event.kind),
        step = escaped(&event.why.step),
        rule = escaped(&event.why.rule),
        generation = event.generation,
        node = escaped(&event.node),
    );
    if !event.why.facts.is_empty() {
        page.push_str("<ul>");
        for fact in &event.why.facts {
            let _ = write!(page, "<li>{}</li>", escaped(fact));
        }
        page.push_str("</ul>");
    }
    page.push_str("</div>\n");
}

fn checkers(page: &mut String, record: &Record) {
    page.push_str("<table><tr><th>checker</th><th></th><th>looked at</th><th>findings</th></tr>\n");
    for verdict in &record.report.verdicts {
        let found = verdict.found();
        let word = match found {
            Found::Kept => found.as_str().to_owned(),
            Found::Nothing => format!("<span class=\"bad\">{}</span>", found.as_str()),
            Found::Violated => format!("<span class=\"bad\">{} violations</span>", verdict.violations),
        };
        let findings: Vec<String> = verdict.findings.iter().map(escaped).collect();
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{word}</td><td>{}</td><td>{}</td></tr>",
            escaped(verdict.checker),
            verdict.examined,
            findings.join("<br>")
        );
    }
    page.push_str("</table>\n");
}

fn gaps(page: &mut String, record: &Record) {
    let gaps = &record.timeline.gaps;
    if gaps.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Write gaps</h2>\n<p class=\"quiet\">Times without an acknowledgement to the client outside, from 0.2 s.</p>\n\
         <table><tr><th>from</th><th>to</th><th>length</th><th>of it, the client's own at most</th></tr>\n",
    );
    for gap in gaps {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{} ms</td><td>{} ms</td></tr>",
            seconds(gap.from_ms),
            seconds(gap.to_ms),
            gap.length_ms,
            gap.client_ms
        );
    }
    page.push_str("</table>\n");
}

/// Tells the steps that were passed over or skipped.
fn left_out(page: &mut String, record: &Record) {
    let report = &record.report;
    let passed = report.passed_over.iter().map(|step| (&step.step, step.on.as_deref(), &step.why));
    let skipped = report.skipped.iter().map(|step| (&step.step, None, &step.why));
    let all: Vec<_> = passed.chain(skipped).collect();
    if all.is_empty() {
        return;
    }
    page.push_str("<h2>Steps that were not done</h2>\n<table><tr><th>step</th><th>host</th><th>why</th></tr>\n");
    for (step, on, why) in all {
        let (step, on, why) = (escaped(step), escaped(on.unwrap_or_default()), escaped(why));
        let _ = writeln!(page, "<tr><td>{step}</td><td>{on}</td><td>{why}</td></tr>");
    }
    page.push_str("</table>\n");
}

/// Returns text so that it stands in HTML, between tags or in an attribute, as it is.
fn escaped(text: impl Display) -> String {
    let text = text.to_string();
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

fn seconds(ms: i64) -> String {
    format!("{:.2} s", ms as f64 / 1000.0)
}

/// Returns the name of the event at `index`: a, b, …, z, aa, ab, …
fn letter(index: usize) -> String {
    let last = char::from(b'a' + u8::try_from(index % 26).unwrap_or_default());
    if index < 26 { last.to_string() } else { format!("{}{last}", letter(index / 26 - 1)) }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::record as example;
