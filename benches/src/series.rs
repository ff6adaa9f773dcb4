//! Figures of several rounds. The machine's speed changes from round to round, so two servers are compared within each
//! round, and the median of these ratios counts.

use std::fmt;

use crate::table::figure;

/// A figure of each round; `None` if it was not measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Series(Vec<Option<f64>>);

/// The ratios of two series within the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    least: f64,
    most: f64,
}

impl Series {
    /// Returns the series of a single round.
    pub(crate) fn one(value: f64) -> Self {
        Self(vec![Some(value)])
    }

    pub(crate) fn median(&self) -> Option<f64> {
        median(self.0.iter().flatten().copied().collect())
    }

    /// Combines the figures of each round.
    pub(crate) fn with(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        self.0.iter().zip(&other.0).map(|(one, other)| Some(combine((*one)?, (*other)?))).collect()
    }

    /// Returns the ratio to another series, or `None` if no round has both.
    pub(crate) fn ratio(&self, to: &Self) -> Option<Ratio> {
        let Self(ratios) = self.with(to, |one, other| one / other);
        let ratios: Vec<f64> = ratios.into_iter().flatten().collect();
        let least = ratios.iter().copied().min_by(f64::total_cmp)?;
        let most = ratios.iter().copied().max_by(f64::total_cmp)?;
        Some(Ratio { median: median(ratios)?, least, most })
    }
}

impl FromIterator<Option<f64>> for Series {
    /// A value that is not a number counts as not measured.
    fn from_iter<I: IntoIterator<Item = Option<f64>>>(rounds: I) -> Self {
        Self(rounds.into_iter().map(|value| value.filter(|value| !value.is_nan())).collect())
    }
}

impl fmt::Display for Ratio {
    /// Writes the median and, if there were several rounds, the least and the most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&figure(self.median))?;
        if self.least < self.most { write!(f, " ({} to {})", figure(self.least), figure(self.most)) } else { Ok(()) }
    }
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_that_have_both_figures() {
        // The machine is twice as slow in the second round.
        let ours: Series = [Some(3.0), Some(6.2), None, Some(3.2)].into_iter().collect();
        let theirs: Series = [Some(2.0), Some(4.0), Some(2.0), Some(2.0)].into_iter().collect();
        let ratio = ours.ratio(&theirs).unwrap();
        assert_eq!(ratio.to_string(), "1.55 (1.50 to 1.60)");
        assert_eq!(ours.median(), Some(3.2));
        assert_eq!(ours.ratio(&[None, None, Some(1.0)].into_iter().collect()), None);
    }

    #[test]
    fn the_ratio_of_one_round_has_no_range() {
        let one: Series = [Some(1.0)].into_iter().collect();
        assert_eq!(one.ratio(&[Some(4.0)].into_iter().collect()).unwrap().to_string(), "0.250");
    }
}
