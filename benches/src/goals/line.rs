//! A line of the table of goals.

use crate::{
    series::Series,
    table::{NOTHING, figure},
};

/// A figure beside its goal.
pub(super) struct Line {
    pub(super) what: String,
    pub(super) figure: String,
    pub(super) reference: String,
    pub(super) ratio: String,
    pub(super) goal: String,
    /// `None` if there is no goal.
    pub(super) reached: Option<bool>,
}

/// What a ratio is to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    AtMost(f64),
    Below(f64),
    /// The ratio is only shown.
    None,
}

impl Line {
    /// Returns a line for a figure whose ratio to a reference of the same round has a goal.
    pub(super) fn ratio(
        what: impl Into<String>,
        value: &Series,
        unit: &str,
        reference: &Series,
        of: &str,
        goal: Goal,
    ) -> Self {
        let show =
            |series: &Series| series.median().map_or(NOTHING.to_owned(), |value| format!("{} {unit}", figure(value)));
        let ratio = value.ratio(reference);
        let median = ratio.map(|ratio| ratio.median);
        let (goal, reached) = match goal {
            Goal::AtMost(most) => (format!("≤ {most} ×"), median.map(|median| median <= most)),
            Goal::Below(most) => (format!("< {most} ×"), median.map(|median| median < most)),
            Goal::None => (NOTHING.to_owned(), None),
        };
        Self {
            what: what.into(),
            figure: show(value),
            reference: format!("{}, {of}", show(reference)),
            ratio: ratio.map_or(NOTHING.to_owned(), |ratio| ratio.to_string()),
            goal,
            reached,
        }
    }

    /// Returns a line for a figure with an absolute goal.
    fn bound(what: impl Into<String>, value: f64, unit: &str, goal: String, reached: bool) -> Self {
        let (reference, ratio) = (NOTHING.to_owned(), NOTHING.to_owned());
        Self {
            what: what.into(),
            figure: format!("{} {unit}", figure(value)),
            reference,
            ratio,
            goal,
            reached: Some(reached),
        }
    }

    /// Returns a line that says what failed.
    pub(super) fn failed(what: String) -> Self {
        let nothing = || NOTHING.to_owned();
        Self { what, figure: nothing(), reference: nothing(), ratio: nothing(), goal: nothing(), reached: Some(false) }
    }

    pub(super) fn at_most(what: impl Into<String>, value: &Series, unit: &str, most: f64) -> Self {
        let value = value.median().unwrap_or(f64::NAN);
        Self::bound(what, value, unit, format!("≤ {} {unit}", figure(most)), value <= most)
    }

    pub(super) fn at_least(what: impl Into<String>, value: &Series, unit: &str, least: f64) -> Self {
        let value = value.median().unwrap_or(f64::NAN);
        Self::bound(what, value, unit, format!("≥ {least} {unit}"), value >= least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(goal: Goal) -> Line {
        let (ours, theirs) = ([Some(2.0), Some(3.0), Some(2.0)], [Some(2.0), Some(2.0), Some(2.0)]);
        Line::ratio("a", &ours.into_iter().collect(), "µs", &theirs.into_iter().collect(), "b", goal)
    }

    #[test]
    fn a_ratio_is_held_against_its_goal() {
        let at_most = line(Goal::AtMost(1.0));
        assert_eq!(at_most.reached, Some(true));
        assert_eq!((&*at_most.figure, &*at_most.reference), ("2.00 µs", "2.00 µs, b"));
        assert_eq!((&*at_most.ratio, &*at_most.goal), ("1.00 (1.00 to 1.25)", "≤ 1 ×"));
        assert_eq!(line(Goal::Below(1.0)).reached, Some(false));
        assert_eq!(line(Goal::None).reached, None);
    }
}
