//! Prints what came out.

use crate::measure::Comparison;

/// Prints all figures of a comparison.
pub fn print(comparison: &Comparison) {
    println!("\n{} (ratios to {})", comparison.path, comparison.reference);
    println!("{:>12} {:>12} {:>8}", "median ns", "minimum ns", "ratio");
    for line in &comparison.lines {
        let (median, minimum, ratio) = (line.median, line.minimum, line.ratio);
        println!(
            "{median:>12.1} {minimum:>12.1} {ratio:>7.2}x  {}",
            line.name
        );
    }
}
