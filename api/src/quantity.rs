//! Kubernetes resource quantities: `100m`, `1.5Gi`, `2e3`.
//!
//! Follows `k8s.io/apimachinery/pkg/api/resource`: a signed decimal number with a decimal suffix (`n u m k M
//! G T P E`), a binary suffix (`Ki Mi Gi Ti Pi Ei`) or a decimal exponent (`e3`). Nothing finer than a
//! billionth is kept: what is finer rounds away from zero. Nothing is larger than 2⁶³−1: what is larger is cut to that.
//! Results are exact; no floating point is used.
//!
//! Of arithmetic there is what quotas need; others compute with the integers that [`Quantity::millis`] and
//! [`Quantity::bytes`] give.

use std::fmt;
use std::str::FromStr;

/// What a quantity must look like, in the words of the API server.
const PATTERN: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
/// The largest magnitude in whole units, as upstream's `maxAllowed`.
const UNITS_MAX: i128 = i64::MAX as i128;
const NANOS_PER_UNIT: i128 = 1_000_000_000;
/// Longest text looked at: upstream has no bound, real quantities are shorter than 30 bytes.
const LENGTH_MAX: usize = 256;

/// A parsed quantity. Ordered and compared by value: `1` equals `1000m`.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    /// Value in billionths, at most `UNITS_MAX * NANOS_PER_UNIT` either way.
    nanos: i128,
    format: Format,
}

/// The notation that the quantity was written in, which its canonical form keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("{PATTERN}")]
    Format,
    /// The number is well-formed, its suffix is not one of the known.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Thousandths, rounded up (`MilliValue`): what the kubelet counts CPU in. Cut to the range of `i64`.
    pub fn millis(&self) -> i64 {
        saturate(ceil_div(self.nanos, NANOS_PER_UNIT / 1000))
    }

    /// Whole units, rounded up (`Value`): what the kubelet counts bytes in.
    pub fn bytes(&self) -> i64 {
        saturate(ceil_div(self.nanos, NANOS_PER_UNIT))
    }

    /// Zero.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// So many whole units.
    pub fn of(units: i64) -> Quantity {
        Quantity { nanos: i128::from(units) * NANOS_PER_UNIT, format: Format::DecimalSi }
    }

    /// The sum, cut to the largest magnitude. A zero takes the other's notation, as upstream's.
    #[must_use]
    pub fn plus(self, other: Quantity) -> Quantity {
        self.with(other, self.nanos + other.nanos)
    }

    /// The difference, cut to the largest magnitude.
    #[must_use]
    pub fn minus(self, other: Quantity) -> Quantity {
        self.with(other, self.nanos - other.nanos)
    }

    fn with(self, other: Quantity, nanos: i128) -> Quantity {
        let cap = UNITS_MAX * NANOS_PER_UNIT;
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: nanos.clamp(-cap, cap), format }
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// What a suffix multiplies by.
enum Scale {
    /// 10 to this power.
    Ten(i64),
    /// 1024 to this power.
    Kibi(u32),
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        if text.is_empty() || text.len() > LENGTH_MAX {
            return Err(QuantityError::Format);
        }
        let (negative, rest) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (scale, format) = parse_suffix(suffix)?;
        let magnitude = scaled_nanos(whole, fraction, &scale);
        Ok(Quantity { nanos: if negative { -magnitude } else { magnitude }, format })
    }
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Format), QuantityError> {
    let binary = |power| Ok((Scale::Kibi(power), Format::BinarySi));
    let decimal = |power| Ok((Scale::Ten(power), Format::DecimalSi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            // Upstream's ParseInt(…, 10, 64): an exponent that does not fit is not an exponent.
            let power: i64 = digits.parse().map_err(|_| QuantityError::Suffix)?;
            Ok((Scale::Ten(power), Format::DecimalExponent))
        }
    }
}

/// `whole.fraction × scale` in billionths, rounded up, cut to the largest magnitude.
fn scaled_nanos(whole: &str, fraction: &str, scale: &Scale) -> i128 {
    let digits = || whole.bytes().chain(fraction.bytes()).map(|digit| i128::from(digit - b'0'));
    if digits().all(|digit| digit == 0) {
        return 0;
    }
    let cap = UNITS_MAX * NANOS_PER_UNIT;
    let fraction_digits = i64::try_from(fraction.len()).expect("a quantity's length is bounded");
    let (ten_power, factor) = match scale {
        Scale::Ten(power) => (power.saturating_add(9).saturating_sub(fraction_digits), 1),
        // At most 2^60 × 10^9, which fits: the power of ten is applied to the digits, not to this.
        Scale::Kibi(power) => (9 - fraction_digits, 1024_i128.pow(*power)),
    };
    // With the point after the last digit, the value is `digits × factor × 10^ten_power` billionths.
    let mut value: i128 = 0;
    let mut inexact = false;
    let count = i64::try_from(whole.len() + fraction.len()).expect("a quantity's length is bounded");
    // Digits that lie wholly below a billionth even after `factor` only decide whether to round up. `factor` is
    // below 10^19, so that many of them are still read.
    let kept = count.saturating_add(ten_power.min(0)).saturating_add(if factor > 1 { 19 } else { 0 });
    for (place, digit) in (0_i64..).zip(digits()) {
        if place < kept {
            value = match value.checked_mul(10).and_then(|v| v.checked_add(digit)) {
                Some(value) => value,
                // More than 10^38 in the last place kept: far beyond the cap whatever follows, except when
                // leading digits are followed by a large negative power, which `kept` has cut off already.
                None => return cap,
            };
        } else {
            inexact |= digit != 0;
        }
    }
    let left_power = ten_power + (count - kept.clamp(0, count));
    let Some(product) = value.checked_mul(factor) else { return cap };
    let scaled = if left_power >= 0 {
        u32::try_from(left_power)
            .ok()
            .and_then(|power| 10_i128.checked_pow(power))
            .and_then(|ten| product.checked_mul(ten))
            .unwrap_or(if product == 0 { 0 } else { cap })
    } else {
        match u32::try_from(-left_power).ok().and_then(|power| 10_i128.checked_pow(power)) {
            Some(ten) => {
                inexact |= product % ten != 0;
                product / ten
            }
            None => {
                inexact |= product != 0;
                0
            }
        }
    };
    (scaled + i128::from(inexact)).min(cap)
}

fn ceil_div(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// The canonical form (`CanonicalizeBytes`): no fraction, the largest suffix that keeps every digit.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let units = self.nanos / NANOS_PER_UNIT;
        let whole = self.nanos % NANOS_PER_UNIT == 0;
        // Small or fractional binary quantities are written decimal, as upstream does to avoid rounding.
        if self.format == Format::BinarySi && whole && units.abs() >= 1024 {
            let mut value = units;
            let mut power = 0;
            while value % 1024 == 0 && power < 6 {
                value /= 1024;
                power += 1;
            }
            return write!(f, "{value}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let mut value = self.nanos;
        let mut exponent = -9;
        while value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        match (self.format, exponent) {
            (_, 0) => write!(f, "{value}"),
            (Format::DecimalExponent, _) => write!(f, "{value}e{exponent}"),
            _ => {
                let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                let index = usize::try_from(exponent / 3 + 3).expect("the exponent starts at -9");
                write!(f, "{value}{}", suffix[index])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn sums_and_differences() {
        let check = |a: &str, b: &str, sum: &str, difference: &str| {
            let (a, b) = (parse(a), parse(b));
            assert_eq!((a.plus(b).to_string().as_str(), a.minus(b).to_string().as_str()), (sum, difference));
        };
        check("1", "500m", "1500m", "500m");
        check("0", "1Gi", "1Gi", "-1Gi");
        check("1Gi", "512Mi", "1536Mi", "512Mi");
        check("9223372036854775807", "9223372036854775807", "9223372036854775807", "0");
        assert_eq!(Quantity::of(3), parse("3"));
    }

    #[track_caller]
    fn check(text: &str, millis: i64, bytes: i64, canonical: &str) {
        let quantity = parse(text);
        assert_eq!(
            (quantity.millis(), quantity.bytes(), quantity.to_string().as_str()),
            (millis, bytes, canonical),
            "{text}"
        );
    }

    #[test]
    fn values_and_canonical_forms() {
        check("0", 0, 0, "0");
        check("-0", 0, 0, "0");
        check("0Ki", 0, 0, "0");
        check("1", 1000, 1, "1");
        check("+1", 1000, 1, "1");
        check("-1", -1000, -1, "-1");
        check(".5", 500, 1, "500m");
        check("5.", 5000, 5, "5");
        check("100m", 100, 1, "100m");
        check("1000m", 1000, 1, "1");
        check("1500m", 1500, 2, "1500m");
        check("0.1", 100, 1, "100m");
        check("1u", 1, 1, "1u");
        check("1n", 1, 1, "1n");
        check("0.1n", 1, 1, "1n");
        check("-0.1n", 0, 0, "-1n");
        check("1k", 1_000_000, 1000, "1k");
        check("12000", 12_000_000, 12_000, "12k");
        check("1M", 1_000_000_000, 1_000_000, "1M");
        check("1G", 1_000_000_000_000, 1_000_000_000, "1G");
        check("1T", 1_000_000_000_000_000, 1_000_000_000_000, "1T");
        check("1P", 1_000_000_000_000_000_000, 1_000_000_000_000_000, "1P");
        check("1E", i64::MAX, 1_000_000_000_000_000_000, "1E");
        check("1Ki", 1_024_000, 1024, "1Ki");
        check("1.5Gi", 1_610_612_736_000, 1_610_612_736, "1536Mi");
        check("0.5Ki", 512_000, 512, "512");
        check("1.1Ki", 1_126_400, 1127, "1126400m");
        check("1024", 1_024_000, 1024, "1024");
        check("1Mi", 1_048_576_000, 1_048_576, "1Mi");
        check("1Ti", 1_099_511_627_776_000, 1_099_511_627_776, "1Ti");
        check("1Pi", 1_125_899_906_842_624_000, 1_125_899_906_842_624, "1Pi");
        check("1Ei", i64::MAX, 1_152_921_504_606_846_976, "1Ei");
        check("1e3", 1_000_000, 1000, "1e3");
        check("1E3", 1_000_000, 1000, "1e3");
        check("1e+3", 1_000_000, 1000, "1e3");
        check("12e-3", 12, 1, "12e-3");
        check("100e2", 10_000_000, 10_000, "10e3");
        check("1e-100", 1, 1, "1e-9");
        check("129M", 129_000_000_000, 129_000_000, "129M");
        check("123Mi", 128_974_848_000, 128_974_848, "123Mi");
    }

    #[test]
    fn what_is_too_large_is_cut_to_the_largest() {
        for text in ["1e100", "8Ei", "9223372036854775807", "9223372036854775808", "1e999999999", "99999E"] {
            assert_eq!(parse(text).bytes(), i64::MAX, "{text}");
        }
        assert_eq!(parse("-1e100").bytes(), -i64::MAX);
        assert_eq!(parse(&"9".repeat(200)).bytes(), i64::MAX);
        assert_eq!(parse(&format!("0.{}1", "0".repeat(200))).to_string(), "1n");
        assert_eq!(parse(&format!("{}1", "0".repeat(200))).to_string(), "1");
        assert_eq!(parse(&format!("1{}e-190", "0".repeat(200))).bytes(), 10_000_000_000);
        assert_eq!(parse(&format!("1.{}Ki", "0".repeat(200))).to_string(), "1Ki");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            " ",
            "a",
            "1 ",
            " 1",
            "1Kb",
            "1ki",
            "1K",
            "1e",
            "1e1.5",
            "1..2",
            "1.2.3",
            ".",
            "+",
            "-",
            "--1",
            "1mm",
            "1Kim",
            "0x10",
            "1_000",
            "m",
            "Ki",
            "e3",
            "1e99999999999999999999",
            "١",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
        assert!("1".repeat(LENGTH_MAX + 1).parse::<Quantity>().is_err());
    }

    #[test]
    fn order_is_by_value() {
        assert_eq!(parse("1"), parse("1000m"));
        assert!(parse("1Ki") > parse("1k"));
        assert!(parse("-1") < parse("0"));
        assert!(parse("-1").is_negative() && parse("0").is_zero());
    }

    /// splitmix64: a stated sequence, so that a failing case is found again.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn canonical_form_is_a_fixed_point_of_equal_value() {
        let suffixes = [
            "", "n", "u", "m", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi", "e3", "e-4", "E2", "e7",
        ];
        let mut state = 7;
        for _ in 0..20_000 {
            let whole = random(&mut state) >> (random(&mut state) % 64);
            let fraction = random(&mut state) % 1000;
            let suffix = suffixes[usize::try_from(random(&mut state) % 18).expect("small")];
            let sign = ["", "-", "+"][usize::try_from(random(&mut state) % 3).expect("small")];
            let text = format!("{sign}{whole}.{fraction}{suffix}");
            let quantity = parse(&text);
            let canonical = quantity.to_string();
            assert_eq!(parse(&canonical), quantity, "{text} → {canonical}");
            assert_eq!(parse(&canonical).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused_without_a_panic() {
        let alphabet = b"0123456789.+-eEinumkKMGTP x";
        let mut state = 11;
        for _ in 0..50_000 {
            let length = random(&mut state) % 24;
            let text: String = (0..length)
                .map(|_| char::from(alphabet[usize::try_from(random(&mut state) % 27).expect("small")]))
                .collect();
            if let Ok(quantity) = text.parse::<Quantity>() {
                assert_eq!(parse(&quantity.to_string()), quantity, "{text}");
            }
        }
    }
}
