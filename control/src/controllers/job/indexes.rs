//! Sets of completion indexes as a job's status has them: `1,3-5,7`. Pure.

use std::fmt;

/// Ordered intervals, both ends in them, none next to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i64, i64)>);

impl Indexes {
    /// Reads the text, and leaves out what is malformed or not below a bound.
    pub fn read(text: &str, below: i64) -> Indexes {
        let interval = |part: &str| -> Option<(i64, i64)> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (i64, i64) = (first.parse().ok()?, last.parse().ok()?);
            let last = last.min(below - 1);
            (0 <= first && first <= last).then_some((first, last))
        };
        Indexes::of(text.split(',').filter_map(interval).collect())
    }

    fn of(mut intervals: Vec<(i64, i64)>) -> Indexes {
        intervals.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::with_capacity(intervals.len());
        for (first, last) in intervals {
            match merged.last_mut() {
                Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Indexes(merged)
    }

    /// With these, too.
    pub fn with(&self, more: impl IntoIterator<Item = i64>) -> Indexes {
        let mut intervals = self.0.clone();
        intervals.extend(more.into_iter().map(|index| (index, index)));
        Indexes::of(intervals)
    }

    /// With those of another set, too.
    pub fn and(&self, other: &Indexes) -> Indexes {
        Indexes::of(self.0.iter().chain(&other.0).copied().collect())
    }

    /// How many.
    pub fn total(&self) -> i64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether an index is among them.
    pub fn has(&self, index: i64) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= index);
        after.checked_sub(1).and_then(|before| self.0.get(before)).is_some_and(|(_, last)| index <= *last)
    }

    /// The first so many below a bound that are not among them.
    pub fn missing(&self, count: usize, below: i64) -> Vec<i64> {
        let mut found = Vec::new();
        let mut next = 0;
        for (first, last) in self.0.iter().copied().chain([(below, below)]) {
            while next < first.min(below) && found.len() < count {
                found.push(next);
                next += 1;
            }
            next = next.max(last + 1);
        }
        found
    }

    /// How many are in both.
    pub fn common(&self, other: &Indexes) -> i64 {
        let pairs = self.0.iter().flat_map(|a| other.0.iter().map(move |b| (a, b)));
        pairs.map(|(a, b)| (a.1.min(b.1) - a.0.max(b.0) + 1).max(0)).sum()
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written() {
        let check = |text: &str, expected: &str, total: i64| {
            let indexes = Indexes::read(text, 10);
            assert_eq!((indexes.to_string().as_str(), indexes.total()), (expected, total), "{text}");
        };
        check("", "", 0);
        check("0", "0", 1);
        check("0,1", "0,1", 2);
        check("1,3-5,7", "1,3-5,7", 5);
        check("5-3,1,x,-1,2-,9-99999999999999,12", "1,9", 2);
        check("3,4,5,0", "0,3-5", 4);
        check("0-99999999999999999999", "", 0);
    }

    #[test]
    fn members_gaps_and_overlaps() {
        let indexes = Indexes::read("1,3-5,7", 10);
        let members: Vec<i64> = (-1..11).filter(|index| indexes.has(*index)).collect();
        assert_eq!(members, [1, 3, 4, 5, 7]);
        assert_eq!(indexes.missing(3, 10), [0, 2, 6]);
        assert_eq!(indexes.missing(99, 10), [0, 2, 6, 8, 9]);
        assert_eq!(indexes.missing(99, 4), [0, 2]);
        assert_eq!(indexes.missing(0, 10), [0_i64; 0]);
        assert_eq!(indexes.with([2, 6, 2]).to_string(), "1-7");
        assert_eq!(indexes.and(&Indexes::read("0-2,9", 10)).to_string(), "0-5,7,9");
        assert_eq!(indexes.common(&Indexes::read("0-4,7", 10)), 4);
    }
}
