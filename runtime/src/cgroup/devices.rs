//! Which devices a container may open on cgroup v2: a BPF program on its cgroup.
//!
//! On v1 the devices controller does this, by libcontainer; on v2 there is no such controller, and libcontainer
//! without libbpf applies nothing (youki#230). The program is assembled here: a dozen rules need no compiler. It is
//! loaded once per agent and attached to each container's cgroup before anything runs there; it lives as long as
//! the cgroup. Programs of the levels above (systemd's `DevicePolicy=`) hold as well: `BPF_F_ALLOW_MULTI`.

use super::CgroupError;
use crate::sys;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// bpf.h, `BPF_DEVCG_ACC_*`.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
/// bpf.h, `BPF_DEVCG_DEV_*`.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// One kind of device that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    kind: u32,
    /// Every one if `None`.
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule { kind: CHARACTER, major: Some(major), minor, access: MKNOD | READ | WRITE }
}

/// What every container may use: the default devices of the OCI runtime specification, and making nodes, which opens
/// nothing. admin-guide/devices.txt.
const UNPRIVILEGED: [Rule; 11] = [
    Rule { kind: CHARACTER, major: None, minor: None, access: MKNOD },
    Rule { kind: BLOCK, major: None, minor: None, access: MKNOD },
    character(1, Some(3)), // null
    character(1, Some(5)), // zero
    character(1, Some(7)), // full
    character(1, Some(8)), // random
    character(1, Some(9)), // urandom
    character(5, Some(0)), // tty
    character(5, Some(1)), // console
    character(5, Some(2)), // ptmx
    character(136, None),  // pts
];

/// One instruction: `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u8,
    /// Destination in the low half and source in the high half; the other way round on big-endian machines, where
    /// nobody runs this.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `BPF_LDX | BPF_W | BPF_MEM`.
const LOAD_WORD: u8 = 0x61;
/// `BPF_ALU | BPF_AND | BPF_K`, `BPF_RSH`, `BPF_ALU64 | BPF_MOV` of a register and of a constant.
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
/// `BPF_JMP | BPF_JNE | BPF_K`, `BPF_JMP | BPF_EXIT`.
const JUMP_UNLESS: u8 = 0x55;
const EXIT: u8 = 0x95;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate: immediate as i32 }
}

/// The program: a device is allowed if one rule matches it and grants all of the asked access. Pure.
///
/// Registers: 1 the context, `struct bpf_cgroup_dev_ctx`, and later a scratch; 2 kind; 3 access; 4 major; 5 minor.
fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(COPY, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let refused = !rule.access & (MKNOD | READ | WRITE);
        let mut tests = vec![(2, rule.kind)];
        tests.extend(rule.major.map(|major| (4, major)));
        tests.extend(rule.minor.map(|minor| (5, minor)));
        let mut block = Vec::new();
        if refused != 0 {
            block.push(instruction(COPY, 1, 3, 0, 0));
            block.push(instruction(AND, 1, 0, 0, refused));
            tests.push((1, 0));
        }
        // Each failed test jumps behind the block: over the tests that follow it, and the two that allow.
        let count = tests.len();
        for (number, (register, value)) in tests.into_iter().enumerate() {
            let over = i16::try_from(count - 1 - number + 2).expect("a rule is short");
            block.push(instruction(JUMP_UNLESS, register, 0, over, value));
        }
        block.extend([instruction(SET, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
        program.extend(block);
    }
    program.extend([instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

/// The rules of an unprivileged container, in the kernel.
#[derive(Debug)]
pub struct DeviceRules(OwnedFd);

impl DeviceRules {
    /// Loads the program. Quick.
    ///
    /// # Errors
    /// A kernel without `CONFIG_CGROUP_BPF`, a process without `CAP_BPF` or `CAP_SYS_ADMIN`.
    pub fn load() -> Result<DeviceRules, CgroupError> {
        sys::load_device_program(&assemble(&UNPRIVILEGED)).map(DeviceRules).map_err(CgroupError::Devices)
    }

    /// Puts the rules on a cgroup v2 directory, for everything that will ever run in it or below.
    pub fn attach(&self, dir: &Path) -> Result<(), CgroupError> {
        let attach = |dir: &Path| -> io::Result<()> {
            let cgroup = File::open(dir)?;
            sys::attach_device_program(cgroup.as_fd(), self.0.as_fd())
        };
        attach(dir).map_err(|source| CgroupError::Io { path: dir.into(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the program: enough of a machine for the instructions that `assemble` uses.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> u64 {
        let context = [access << 16 | kind, major, minor];
        let (mut registers, mut at) = ([0_u64; 6], 0_usize);
        loop {
            let i = program[at];
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            at += 1;
            match i.code {
                LOAD_WORD => registers[to] = context[usize::try_from(i.offset / 4).expect("inside")].into(),
                COPY => registers[to] = registers[from],
                AND => registers[to] &= u64::from(i.immediate as u32),
                SHIFT_RIGHT => registers[to] >>= i.immediate,
                SET => registers[to] = i.immediate as u64,
                JUMP_UNLESS if registers[to] != i.immediate as u64 => at += i.offset as usize,
                JUMP_UNLESS => {}
                EXIT => return registers[0],
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn only_harmless_devices_open() {
        let program = assemble(&UNPRIVILEGED);
        let check = |kind, access, major, minor, allowed: bool| {
            let answer = run(&program, kind, access, major, minor);
            assert_eq!(answer == 1, allowed, "{kind} {access} {major}:{minor}");
        };
        check(CHARACTER, READ | WRITE, 1, 3, true);
        check(CHARACTER, READ, 1, 9, true);
        check(CHARACTER, READ | WRITE, 5, 2, true);
        check(CHARACTER, WRITE, 136, 77, true);
        check(CHARACTER, MKNOD, 1, 1, true);
        check(BLOCK, MKNOD, 8, 0, true);
        // /dev/mem, /dev/kmem, a disk, a terminal of the host, a block device with the numbers of /dev/null.
        check(CHARACTER, READ, 1, 1, false);
        check(CHARACTER, MKNOD | READ, 1, 1, false);
        check(CHARACTER, WRITE, 1, 2, false);
        check(BLOCK, READ, 8, 0, false);
        check(CHARACTER, READ, 4, 1, false);
        check(BLOCK, READ, 1, 3, false);
    }
}
