//! What a history is worth: whether enough happened in it, and what the checker says.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::record::{End, Kind, Totals};

/// Answered operations a second below which a run is invalid: too little happened at the same time to prove anything.
const MIN_RATE: f64 = 30.0;

/// The share of writes of unknown outcome below which a run is invalid.
const MIN_AMBIGUOUS: f64 = 0.05;

/// Answers of each kind, for each second.
const MIN_OF_EACH_KIND: f64 = 2.0;

/// Longest time for one key's operations. More is no answer.
const LIMIT: &str = "20s";

/// What the checker prints.
#[derive(Debug, Deserialize)]
pub struct Report {
    pub operations: usize,
    pub keys: usize,
    pub slowest_key_ms: u64,
    pub problems: Option<Vec<Problem>>,
}

#[derive(Debug, Deserialize)]
pub struct Problem {
    pub check: String,
    #[serde(default)]
    pub key: String,
    pub detail: String,
    #[serde(default)]
    pub picture: String,
}

impl Report {
    pub fn problems(&self) -> &[Problem] {
        self.problems.as_deref().unwrap_or_default()
    }

    /// The checks that failed, each once.
    pub fn failed(&self) -> Vec<&str> {
        let mut checks: Vec<_> =
            self.problems().iter().map(|problem| problem.check.as_str()).collect();
        checks.sort_unstable();
        checks.dedup();
        checks
    }
}

/// Has a history checked.
pub fn check(history: &Path, pictures: &Path) -> Report {
    let mut command = Command::new(tool());
    command.args(["-limit", LIMIT, "-pictures"]).arg(pictures).arg(history);
    let output = command.output().unwrap();
    let wrong = String::from_utf8_lossy(&output.stderr);
    let Ok(report) = serde_json::from_slice::<Report>(&output.stdout) else {
        panic!("the checker ended with {} and without a report: {wrong}", output.status);
    };
    let status = i32::from(!report.problems().is_empty());
    assert_eq!(output.status.code(), Some(status), "{report:?} {wrong}");
    report
}

fn tool() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tools = match std::env::var_os("CELLD_TEST_TOOLS") {
        Some(tools) => here.join(tools),
        None => here.join("target/tools"),
    };
    let tool = tools.join("bin/linearizability-checker");
    assert!(tool.is_file(), "{} does not exist: run scripts/install-test-tools", tool.display());
    tool
}

/// Why too little happened for the history to prove anything.
pub fn invalid(totals: &Totals) -> Option<String> {
    let (rate, ambiguous) = (totals.rate(), totals.ambiguous());
    if rate < MIN_RATE {
        return Some(format!("{rate:.0} operations a second, of {MIN_RATE} at least"));
    }
    if ambiguous < MIN_AMBIGUOUS {
        return Some(format!("{:.1} % of the writes are ambiguous", ambiguous * 100.0));
    }
    let least = (MIN_OF_EACH_KIND * totals.took.as_secs_f64()) as usize;
    [Kind::Resolve, Kind::Lookup, Kind::Get, Kind::Pin, Kind::Delete].into_iter().find_map(|kind| {
        let known = totals
            .count(|counted, end| counted == kind && matches!(end, End::Known | End::Remembered));
        (known < least).then(|| format!("{known} of {kind:?}, of {least} at least"))
    })
}
