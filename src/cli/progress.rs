//! How far long work is, on standard error.

use std::io::{IsTerminal, Write};

use anyhow::Context;

use super::CliError;
use crate::node::progress::{LongWork, ProgressStatus};

/// Tells on standard error how far long work is: in one line on a terminal, elsewhere in a line for each tenth.
#[derive(Debug, Default)]
pub(super) struct ProgressLine {
    /// What stands in the terminal's line.
    shown: String,
    /// The tenth told last, of which work.
    tenth: Option<(LongWork, u64)>,
}

impl ProgressLine {
    /// Tells it, where there is news.
    pub(super) fn tell(&mut self, progress: Option<&ProgressStatus>) -> Result<(), CliError> {
        let mut stderr = std::io::stderr();
        let text = if stderr.is_terminal() { self.in_place(progress) } else { self.as_line(progress) };
        write!(stderr, "{}", text.unwrap_or_default()).context("write to standard error")?;
        stderr.flush().context("write to standard error")?;
        Ok(())
    }

    /// Ends the terminal's line, where there is one: another is about to be written.
    pub(super) fn end(&mut self) -> Result<(), CliError> {
        if !std::mem::take(&mut self.shown).is_empty() {
            writeln!(std::io::stderr()).context("write to standard error")?;
        }
        Ok(())
    }

    /// Returns what writes the line anew, where it has changed.
    fn in_place(&mut self, progress: Option<&ProgressStatus>) -> Option<String> {
        let text = &progress?.text;
        if *text == self.shown {
            return None;
        }
        self.shown.clone_from(text);
        // to the line's beginning, and what is left of the former line is erased
        Some(format!("\r  {text}\x1b[K"))
    }

    /// Returns a line, where a tenth has passed since the last one.
    fn as_line(&mut self, progress: Option<&ProgressStatus>) -> Option<String> {
        let progress = progress?;
        let tenth = Some((progress.work, progress.percent / 10));
        if tenth == self.tenth {
            return None;
        }
        self.tenth = tenth;
        Some(format!("  {}\n", progress.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_told_in_place_or_by_tenths() {
        let progress = |percent| ProgressStatus {
            work: LongWork::Copying,
            done_bytes: percent,
            total_bytes: 100,
            percent,
            seconds_left: None,
            still_seconds: 0,
            text: format!("copied {percent} %"),
        };
        let mut line = ProgressLine::default();
        let told: Vec<_> =
            [0, 3, 9, 10, 35, 36, 100].into_iter().filter_map(|at| line.as_line(Some(&progress(at)))).collect();
        assert_eq!(told, ["  copied 0 %\n", "  copied 10 %\n", "  copied 35 %\n", "  copied 100 %\n"]);
        let told: Vec<_> = [0, 0, 3].into_iter().filter_map(|at| line.in_place(Some(&progress(at)))).collect();
        assert_eq!(told, ["\r  copied 0 %\x1b[K", "\r  copied 3 %\x1b[K"]);
        assert_eq!((line.in_place(None), line.as_line(None)), (None, None));
    }
}
