//! Figures of several rounds. The machine's speed changes from round to round, so two servers are compared within each
//! round, and the median of these ratios counts. Half of the ratios lie between the quartiles.

use std::fmt;

use crate::table::figure;

/// A figure of each round; `None` if it was not measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Series(Vec<Option<f64>>);

/// The ratios of two series within the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    quartiles: [f64; 2],
}

impl Series {
    /// Returns the series of a single round.
    pub(crate) fn one(value: f64) -> Self {
        Self(vec![Some(value)])
    }

    pub(crate) fn median(&self) -> Option<f64> {
        quantile(&sorted(self.0.iter().flatten().copied()), 0.5)
    }

    /// Combines the figures of each round.
    pub(crate) fn with(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        self.0.iter().zip(&other.0).map(|(one, other)| Some(combine((*one)?, (*other)?))).collect()
    }

    /// Returns the ratio to another series, or `None` if no round has both.
    pub(crate) fn ratio(&self, to: &Self) -> Option<Ratio> {
        let Self(ratios) = self.with(to, |one, other| one / other);
        let ratios = sorted(ratios.into_iter().flatten());
        let at = |share| quantile(&ratios, share);
        Some(Ratio { median: at(0.5)?, quartiles: [at(0.25)?, at(0.75)?] })
    }
}

impl FromIterator<Option<f64>> for Series {
    /// A value that is not a number counts as not measured.
    fn from_iter<I: IntoIterator<Item = Option<f64>>>(rounds: I) -> Self {
        Self(rounds.into_iter().map(|value| value.filter(|value| !value.is_nan())).collect())
    }
}

impl fmt::Display for Ratio {
    /// Writes the median and, if they differ from it, the quartiles.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [lower, upper] = self.quartiles;
        f.write_str(&figure(self.median))?;
        if lower < upper { write!(f, " ({} to {})", figure(lower), figure(upper)) } else { Ok(()) }
    }
}

fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// Returns the figure below which this share of the sorted figures lies. Between two figures it lies in proportion.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = sorted.len().checked_sub(1)? as f64 * share;
    let (lower, upper) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(lower + (upper - lower) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series<const N: usize>(figures: [Option<f64>; N]) -> Series {
        figures.into_iter().collect()
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_that_have_both_figures() {
        // The machine is twice as slow in the second round.
        let ours = series([Some(3.0), Some(6.4), None, Some(3.6)]);
        let theirs = series([Some(2.0), Some(4.0), Some(2.0), Some(2.0)]);
        assert_eq!(ours.ratio(&theirs).unwrap().to_string(), "1.60 (1.55 to 1.70)");
        assert_eq!(ours.median(), Some(3.6));
        assert_eq!(ours.ratio(&series([None, None, Some(1.0)])), None);
    }

    #[test]
    fn the_median_of_an_even_number_of_rounds_lies_between_the_middle_ones() {
        let rounds = series([Some(4.0), Some(1.0), Some(2.0), Some(9.0)]);
        assert_eq!(rounds.median(), Some(3.0));
        assert_eq!(series([Some(1.0), Some(3.0)]).median(), Some(2.0));
        assert_eq!(Series::default().median(), None);
    }

    #[test]
    fn the_ratio_of_one_round_has_no_quartiles() {
        assert_eq!(series([Some(1.0)]).ratio(&series([Some(4.0)])).unwrap().to_string(), "0.250");
    }
}
