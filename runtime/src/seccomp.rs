//! Seccomp profiles, compiled once and cached as BPF.
//!
//! libseccomp takes 20 ms and a few MiB for the default profile, so it runs in a helper process
//! (`coracle rt seccomp`), once per profile and boot; containers then get the finished program.
//! [`runtime_default`] allows what containerd's `RuntimeDefault` allows, capability by capability.

use coracle_pod::spec::Seccomp;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

mod calls;

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A Localhost profile is not an OCI seccomp object.
    #[error("seccomp profile {path}: {source}; it must be an OCI linux.seccomp JSON object")]
    Parse {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// `SCMP_ACT_NOTIFY` and `SCMP_ACT_TRACE` need a listener that Coracle does not have.
    #[error("seccomp profile uses {0:?}, which needs a listener; use SCMP_ACT_ERRNO or SCMP_ACT_LOG")]
    Action(LinuxSeccompAction),
    /// libseccomp refused a rule.
    #[error("seccomp profile: {0}")]
    Compile(#[from] libseccomp::error::SeccompError),
    /// No memory for the program.
    #[error("seccomp program: {0}")]
    Memory(#[source] std::io::Error),
}

/// The cache key of a container's profile: `None` when unconfined. Pure; the caller joins it to a directory.
pub fn cache_name(profile: &Seccomp, capabilities: u64, localhost_digest: &str) -> Option<String> {
    match profile {
        Seccomp::Unconfined => None,
        Seccomp::RuntimeDefault => Some(format!("default-{:x}.bpf", capabilities & calls::deciding_mask())),
        Seccomp::Localhost(_) => Some(format!("localhost-{localhost_digest}.bpf")),
    }
}

/// Reads an OCI `linux.seccomp` object.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<LinuxSeccomp, SeccompError> {
    serde_json::from_slice(bytes)
        .map_err(|source| SeccompError::Parse { path: path.display().to_string(), source })
}

/// The default profile for a container holding `capabilities` (bit numbers of capability.h). Pure.
pub fn runtime_default(capabilities: u64) -> LinuxSeccomp {
    let allow = "SCMP_ACT_ALLOW";
    let mut rules = vec![json!({"names": calls::ALWAYS, "action": allow})];
    for personality in calls::PERSONALITIES {
        rules.push(json!({"names": ["personality"], "action": allow,
            "args": [{"index": 0, "value": personality, "op": "SCMP_CMP_EQ"}]}));
    }
    rules.push(json!({"names": ["socket"], "action": allow,
        "args": [{"index": 0, "value": libc::AF_VSOCK, "op": "SCMP_CMP_NE"}]}));
    for (capability, names) in calls::BY_CAPABILITY {
        if capabilities & (1 << capability) != 0 {
            rules.push(json!({"names": names, "action": allow}));
        }
    }
    if capabilities & (1 << calls::CAP_SYS_ADMIN) == 0 {
        // No new namespaces. clone3 hides its flags behind a pointer: ENOSYS makes libc fall back to clone.
        rules.push(json!({"names": ["clone"], "action": allow, "args": [
            {"index": 0, "value": calls::NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}));
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}));
    }
    let profile: Value = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": calls::architectures(),
        "syscalls": rules,
    });
    serde_json::from_value(profile).expect("the default profile is well-formed")
}

/// Compiles a profile to a BPF program in native byte order. CPU-bound (20 ms); no privilege needed.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default)?;
    for arch in profile.architectures().iter().flatten() {
        filter.add_arch(architecture(*arch))?;
    }
    filter.set_ctl_nnp(false)?;
    // A binary tree instead of a list: a late syscall costs 9 comparisons and not 300.
    filter.set_ctl_optimize(2)?;
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        if action == default {
            continue;
        }
        let comparators: Vec<ScmpArgCompare> = rule.args().iter().flatten().map(comparator).collect();
        // Names that this libseccomp or this architecture does not know cannot be called either.
        for syscall in rule.names().iter().filter_map(|name| ScmpSyscall::from_name(name).ok()) {
            add(&mut filter, action, syscall, rule.args().as_deref().unwrap_or_default(), &comparators)?;
        }
    }
    // A memfd rather than a pipe: the program may be larger than a pipe holds.
    let mut program = tempfile_in_memory()?;
    filter.export_bpf(&program)?;
    let mut bytes = Vec::new();
    program.rewind().and_then(|()| program.read_to_end(&mut bytes)).map_err(SeccompError::Memory)?;
    Ok(bytes)
}

fn tempfile_in_memory() -> Result<File, SeccompError> {
    let fd = nix::sys::memfd::memfd_create(c"seccomp", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    Ok(File::from(fd.map_err(|e| SeccompError::Memory(e.into()))?))
}

/// libseccomp compares an argument once per rule: several comparisons of one argument become several rules.
fn add(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    syscall: ScmpSyscall,
    args: &[LinuxSeccompArg],
    comparators: &[ScmpArgCompare],
) -> Result<(), SeccompError> {
    let mut indices: Vec<usize> = args.iter().map(LinuxSeccompArg::index).collect();
    indices.sort_unstable();
    indices.dedup();
    if indices.len() == comparators.len() {
        filter.add_rule_conditional(action, syscall, comparators)?;
    } else {
        for comparator in comparators {
            filter.add_rule_conditional(action, syscall, std::slice::from_ref(comparator))?;
        }
    }
    Ok(())
}

fn comparator(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    // OCI: for MASKED_EQ, `value` is the mask and `valueTwo` the datum.
    let (op, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(arg.index() as u32, op, datum)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, SeccompError> {
    let errno = errno.and_then(|e| i32::try_from(e).ok()).unwrap_or(libc::EPERM);
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify | LinuxSeccompAction::ScmpActTrace => {
            return Err(SeccompError::Action(action));
        }
    })
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        // Profiles list foreign architectures too; to name the native one again changes nothing.
        _ => ScmpArch::Native,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_decide_what_the_default_profile_allows() {
        let check = |capabilities: u64, name: &str, expected: bool| {
            let profile = runtime_default(capabilities);
            let rules = profile.syscalls().as_deref().unwrap_or_default();
            let allowed = rules.iter().any(|r| {
                r.action() == LinuxSeccompAction::ScmpActAllow && r.names().iter().any(|n| n == name)
            });
            assert_eq!(allowed, expected, "{name} with {capabilities:x}");
        };
        let admin = 1 << calls::CAP_SYS_ADMIN;
        check(0, "read", true);
        check(0, "mount", false);
        check(admin, "mount", true);
        check(0, "clone3", false);
        check(admin, "clone3", true);
        check(0, "kexec_load", false);
        check(admin, "kexec_load", false);
        check(0, "io_uring_setup", false);
        check(0, "keyctl", false);
        check(1 << 18, "chroot", true);
    }

    #[test]
    fn the_default_profile_compiles_to_a_program_and_keys_differ_only_by_deciding_capabilities() {
        let program = compile(&runtime_default(0)).expect("compiles");
        assert!(program.len() > 100 * 8 && program.len().is_multiple_of(8), "{} bytes", program.len());
        let key = |c| cache_name(&Seccomp::RuntimeDefault, c, "");
        assert_eq!(key(0), key(1), "CAP_CHOWN decides nothing");
        assert_ne!(key(0), key(1 << calls::CAP_SYS_ADMIN));
        assert_eq!(cache_name(&Seccomp::Unconfined, 0, ""), None);
    }

    #[test]
    fn a_localhost_profile_that_needs_a_listener_is_refused() {
        let parsed = |text: &str| parse(Path::new("p.json"), text.as_bytes());
        let notify = parsed(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        );
        assert!(matches!(compile(&notify.expect("parses")), Err(SeccompError::Action(_))));
        assert!(parsed("[]").is_err());
    }
}
