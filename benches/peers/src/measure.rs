//! Runs contenders in turn, so that whatever else the machine does meanwhile hits them alike.

use std::time::{Duration, Instant};

/// One way to do the thing that is measured.
pub struct Contender<'a> {
    name: String,
    operations_per_run: u64,
    run: Box<dyn FnMut(u64) -> Duration + 'a>,
}

impl<'a> Contender<'a> {
    /// `run` does the thing so many times and returns how long that took, without what it had to prepare.
    pub fn new(name: impl Into<String>, run: impl FnMut(u64) -> Duration + 'a) -> Self {
        Self {
            name: name.into(),
            operations_per_run: 1,
            run: Box::new(run),
        }
    }

    /// Says that one run counts as so many operations.
    pub fn per(mut self, operations: usize) -> Self {
        self.operations_per_run = operations as u64;
        self
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// In how many rounds each contender has its turn once.
    pub rounds: usize,
    /// About how long a turn takes.
    pub turn: Duration,
}

impl Plan {
    /// Nine rounds: enough for a median that one disturbed round does not move.
    pub const fn turns_of_millis(millis: u64) -> Self {
        Self {
            rounds: 9,
            turn: Duration::from_millis(millis),
        }
    }

    /// More rounds, for what other programs disturb more: it takes several threads, or much of the cache.
    pub const fn more_turns_of_millis(millis: u64) -> Self {
        Self {
            rounds: 15,
            ..Self::turns_of_millis(millis)
        }
    }
}

/// What one contender took.
#[derive(Clone, Debug)]
pub struct Line {
    /// The contender.
    pub name: String,
    /// The median over the rounds, in nanoseconds an operation.
    pub median: f64,
    /// The least of all rounds.
    pub minimum: f64,
    /// The most of all rounds.
    pub worst: f64,
    /// The median over the rounds of this contender's time to the reference's time in the same round.
    pub ratio: f64,
    /// What each round took.
    pub samples: Vec<f64>,
}

/// What all contenders took on one path.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The path, as in `paths`.
    pub path: String,
    /// The contender that the ratios are to.
    pub reference: String,
    /// The contenders, in the order they were given.
    pub lines: Vec<Line>,
}

impl Comparison {
    /// Returns the median over the rounds of one contender's time to another's.
    pub fn ratio(&self, of: &str, to: &str) -> Option<f64> {
        let samples = |name| {
            let line = self.lines.iter().find(|line| line.name == name)?;
            Some(line.samples.iter())
        };
        let ratios = samples(of)?.zip(samples(to)?).map(|(of, to)| of / to);
        Some(median(ratios))
    }
}

/// Runs the contenders in rounds; in each, another one goes first.
///
/// # Panics
///
/// If no contender is called `reference`.
pub fn compare(
    path: impl Into<String>,
    plan: Plan,
    reference: &str,
    mut contenders: Vec<Contender<'_>>,
) -> Comparison {
    let runs: Vec<u64> = contenders
        .iter_mut()
        .map(|contender| runs_within(plan.turn, &mut contender.run))
        .collect();
    let count = contenders.len();
    let mut samples = vec![Vec::with_capacity(plan.rounds); count];
    for round in 0..plan.rounds {
        for turn in 0..count {
            let who = (round + turn) % count;
            let contender = &mut contenders[who];
            let took = (contender.run)(runs[who]);
            let operations = runs[who] * contender.operations_per_run;
            samples[who].push(took.as_nanos() as f64 / operations as f64);
        }
    }
    let names = contenders.into_iter().map(|contender| contender.name);
    summarize(path.into(), reference, names.zip(samples).collect())
}

/// Makes a comparison of samples, one for each contender in each round.
///
/// # Panics
///
/// If no contender is called `reference`.
pub fn summarize(path: String, reference: &str, samples: Vec<(String, Vec<f64>)>) -> Comparison {
    let of_reference = samples.iter().find(|(name, _)| name == reference);
    let base = of_reference.expect("the reference takes part").1.clone();
    let lines = samples
        .into_iter()
        .map(|(name, samples)| line(name, &samples, &base));
    Comparison {
        path,
        reference: reference.to_owned(),
        lines: lines.collect(),
    }
}

/// Makes the line of one contender, with the ratio to the samples of the reference in the same rounds.
pub fn line(name: String, samples: &[f64], base: &[f64]) -> Line {
    Line {
        name,
        median: median(samples.iter().copied()),
        minimum: samples.iter().copied().fold(f64::INFINITY, f64::min),
        worst: samples.iter().copied().fold(0.0, f64::max),
        ratio: median(samples.iter().zip(base).map(|(ours, base)| ours / base)),
        samples: samples.to_vec(),
    }
}

/// Returns the middle one of the values, or the mean of the two middle ones.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() % 2 {
        _ if values.is_empty() => f64::NAN,
        0 => f64::midpoint(values[half - 1], values[half]),
        _ => values[half],
    }
}

/// Warms the contender up, and returns how many runs take about `turn`.
fn runs_within(turn: Duration, run: &mut dyn FnMut(u64) -> Duration) -> u64 {
    let warm_until = Instant::now() + turn;
    let mut runs = 1;
    loop {
        let took = run(runs);
        if took >= turn / 4 || Instant::now() >= warm_until {
            let scale = turn.as_secs_f64() / took.as_secs_f64().max(1e-9);
            return ((runs as f64 * scale) as u64).max(1);
        }
        runs *= 2;
    }
}
