//! Which of an index's manifests this board runs (OCI image-spec, "Image Index", platform variants).

use oci_spec::image::Platform;
use std::fmt;

/// Operating system, architecture and variant in Go's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub architecture: String,
    /// Best first; every one of them runs here. Never empty.
    pub variants: Vec<&'static str>,
}

impl Target {
    /// This machine: the architecture that the agent was built for, the variant that its CPU has.
    pub fn host() -> Target {
        Target::of(std::env::consts::ARCH, rustix::system::uname().machine().to_bytes())
    }

    /// `arch` in Rust's words, `machine` as uname(2) says it.
    fn of(arch: &str, machine: &[u8]) -> Target {
        let (architecture, variants) = match arch {
            "x86_64" => ("amd64", vec!["v1"]),
            "x86" => ("386", vec![""]),
            "aarch64" => ("arm64", vec!["v8"]),
            // A 32-bit agent under a 64-bit kernel reads `aarch64` or `armv8l`.
            "arm" if machine.starts_with(b"armv6") => ("arm", vec!["v6", "v5"]),
            "arm" if machine.starts_with(b"armv5") => ("arm", vec!["v5"]),
            "arm" => ("arm", vec!["v7", "v6", "v5"]),
            "powerpc64" => ("ppc64le", vec![""]),
            other => (other, vec![""]),
        };
        Target { architecture: architecture.into(), variants }
    }

    /// How well a platform suits: smaller is better, `None` does not run here.
    pub fn rank(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<usize> {
        let (architecture, variant) = match (architecture, variant.unwrap_or("")) {
            ("x86_64", variant) => ("amd64", variant),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            same => same,
        };
        // What a missing variant means: containerd's platforms package, `normalizeArch`.
        let variant = match (architecture, variant) {
            ("amd64", "") => "v1",
            ("arm64", "" | "8") => "v8",
            ("arm", "" | "7") => "v7",
            ("arm", "6") => "v6",
            ("arm", "5") => "v5",
            (_, variant) => variant,
        };
        if os != "linux" || architecture != self.architecture {
            return None;
        }
        self.variants.iter().position(|wanted| *wanted == variant)
    }

    /// [`Target::rank`] of an index entry.
    pub fn rank_platform(&self, platform: &Platform) -> Option<usize> {
        let (os, architecture) = (platform.os().to_string(), platform.architecture().to_string());
        self.rank(&os, &architecture, platform.variant().as_deref())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe("linux", &self.architecture, self.variants.first().copied()))
    }
}

/// `linux/arm/v7`; the variants that everyone leaves out are left out.
pub(super) fn describe(os: &str, architecture: &str, variant: Option<&str>) -> String {
    match (architecture, variant) {
        (_, None | Some("")) | ("amd64", Some("v1")) | ("arm64", Some("v8")) => {
            format!("{os}/{architecture}")
        }
        (_, Some(variant)) => format!("{os}/{architecture}/{variant}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_takes_the_best_variant_that_it_runs() {
        let check = |arch: &str, machine: &str, offered: &[&str], expected: Option<&str>| {
            let target = Target::of(arch, machine.as_bytes());
            let rank = |platform: &str| {
                let mut parts = platform.split('/');
                let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
                target.rank(os, architecture, parts.next())
            };
            let best = offered.iter().filter_map(|o| rank(o).map(|r| (r, *o))).min();
            assert_eq!(best.map(|(_, o)| o), expected, "{arch} {machine} {offered:?}");
        };
        check("x86_64", "x86_64", &["linux/arm64", "linux/amd64"], Some("linux/amd64"));
        check("x86_64", "x86_64", &["linux/amd64/v3", "linux/amd64/v1"], Some("linux/amd64/v1"));
        check("x86_64", "x86_64", &["windows/amd64", "linux/386"], None);
        check("aarch64", "aarch64", &["linux/arm/v7", "linux/arm64"], Some("linux/arm64"));
        check("aarch64", "aarch64", &["linux/arm64/v8"], Some("linux/arm64/v8"));
        check("aarch64", "aarch64", &["linux/arm64/v9"], None);
        check("arm", "armv7l", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], Some("linux/arm/v7"));
        check("arm", "armv7l", &["linux/arm/v6", "linux/arm/v5"], Some("linux/arm/v6"));
        check("arm", "armv7l", &["linux/arm"], Some("linux/arm"));
        check("arm", "armv6l", &["linux/arm/v7", "linux/arm/v6"], Some("linux/arm/v6"));
        check("arm", "armv6l", &["linux/arm/v7", "linux/arm"], None);
        check("arm", "aarch64", &["linux/arm64", "linux/arm/v7"], Some("linux/arm/v7"));
        check("riscv64", "riscv64", &["unknown/unknown", "linux/riscv64"], Some("linux/riscv64"));
    }

    #[test]
    fn platforms_read_as_users_know_them() {
        assert_eq!(Target::of("x86_64", b"").to_string(), "linux/amd64");
        assert_eq!(Target::of("aarch64", b"").to_string(), "linux/arm64");
        assert_eq!(Target::of("arm", b"armv7l").to_string(), "linux/arm/v7");
    }
}
