//! nf_tables over netlink: a batch of changes that the kernel applies wholly or not at all.
//!
//! Follows `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`. Only the expressions that [`super::rules`] uses.

use super::netlink::{Attributes, Message, Refusal, Socket};

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
pub(super) const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;
const SET_IS_MAP: u32 = 8;
const ACCEPT: u32 = 1;
/// Keeps the list of elements, about 50 bytes each, below the 64 KiB of an attribute.
const ELEMENTS_PER_MESSAGE_MAX: usize = 512;

/// `NFPROTO_IPV4`.
pub(super) const IPV4: u8 = 2;
/// `NFPROTO_NETDEV`: what a link receives, before anybody else sees it.
pub(super) const NETDEV: u8 = 5;

/// A 32-bit register, numbered as `NFT_REG32_00 + n`.
#[derive(Clone, Copy)]
pub(super) struct Register(pub(super) u8);

impl Register {
    fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// `NF_INET_*`, the place in a packet's way that a chain hooks.
#[derive(Clone, Copy)]
pub(super) enum Hook {
    PreRouting = 0,
    Output = 3,
    PostRouting = 4,
}

/// The types of a map's key or value, as `nft list` shows them: six bits each, the first highest.
pub(super) const TYPE_IPV4: u32 = 7;
pub(super) const TYPE_PROTOCOL: u32 = 12;
pub(super) const TYPE_PORT: u32 = 13;

/// One key of a map and its value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    pub(super) map: &'static str,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// Changes to one table, in order.
pub(super) struct Batch<'a> {
    family: u8,
    table: &'a str,
    /// What each message does, for the error that names it.
    steps: Vec<(String, Message)>,
    maps: u32,
}

impl<'a> Batch<'a> {
    pub(super) fn new(family: u8, table: &'a str) -> Batch<'a> {
        Batch { family, table, steps: Vec::new(), maps: 0 }
    }

    /// Makes the table unless it is there.
    pub(super) fn make_table(&mut self) {
        self.push("table", NEW_TABLE, CREATE, &Attributes::new().text(1, self.table));
    }

    /// Removes the table and all in it.
    pub(super) fn delete_table(&mut self) {
        self.push("table", DELETE_TABLE, 0, &Attributes::new().text(1, self.table));
    }

    /// A chain that others jump to.
    pub(super) fn chain(&mut self, name: &str) {
        let wanted = Attributes::new().text(1, self.table).text(3, name);
        self.push(&format!("chain {name}"), NEW_CHAIN, CREATE, &wanted);
    }

    /// A chain at a hook; `kind` is `nat` or `filter`.
    pub(super) fn base_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) {
        let place = Attributes::new().network(1, hook as u32).bytes(2, &priority.to_be_bytes());
        let wanted = Attributes::new()
            .text(1, self.table)
            .text(3, name)
            .nest(4, &place)
            .network(5, ACCEPT)
            .text(7, kind);
        self.push(&format!("chain {name} of type {kind}"), NEW_CHAIN, CREATE, &wanted);
    }

    /// A chain of family [`NETDEV`] at the ingress of a link, which it is called after. It begins empty.
    pub(super) fn link_chain(&mut self, link: &str) {
        /// `NF_NETDEV_INGRESS`.
        const INGRESS: u32 = 0;
        let place = Attributes::new().network(1, INGRESS).bytes(2, &0_i32.to_be_bytes()).text(3, link);
        let name = Attributes::new().text(1, self.table).text(3, link);
        let wanted = name.nest(4, &place).network(5, ACCEPT).text(7, "filter");
        self.push(&format!("chain {link} at its ingress"), NEW_CHAIN, CREATE, &wanted);
        self.no_rules(link);
    }

    /// Removes a chain and its rules.
    pub(super) fn delete_chain(&mut self, name: &str) {
        self.no_rules(name);
        let wanted = Attributes::new().text(1, self.table).text(3, name);
        self.push(&format!("chain {name}"), DELETE_CHAIN, 0, &wanted);
    }

    fn no_rules(&mut self, chain: &str) {
        let wanted = Attributes::new().text(1, self.table).text(2, chain);
        self.push(&format!("the rules of chain {chain}"), DELETE_RULE, 0, &wanted);
    }

    /// A map; types as in [`TYPE_IPV4`], four bytes each.
    pub(super) fn map(&mut self, name: &str, key: &[u32], value: &[u32]) {
        self.maps += 1;
        let packed = |types: &[u32]| types.iter().fold(0, |packed, kind| packed << 6 | kind);
        let bytes = |types: &[u32]| u32::try_from(types.len() * 4).expect("a few types");
        let wanted = Attributes::new()
            .text(1, self.table)
            .text(2, name)
            .network(3, SET_IS_MAP)
            .network(4, packed(key))
            .network(5, bytes(key))
            .network(6, packed(value))
            .network(7, bytes(value))
            .network(10, self.maps);
        self.push(&format!("map {name}"), NEW_SET, CREATE, &wanted);
    }

    pub(super) fn rule(&mut self, chain: &str, expressions: impl IntoIterator<Item = Attributes>) {
        let wanted =
            Attributes::new().text(1, self.table).text(2, chain).nest(4, &Attributes::join(expressions));
        self.push(&format!("a rule of chain {chain}"), NEW_RULE, CREATE | APPEND, &wanted);
    }

    pub(super) fn add(&mut self, elements: &[Element]) {
        self.elements(NEW_ELEMENT, CREATE, elements, |element| {
            let value = Attributes::new().bytes(1, &element.value);
            Attributes::new().nest(1, &Attributes::new().bytes(1, &element.key)).nest(2, &value)
        });
    }

    pub(super) fn remove(&mut self, elements: &[Element]) {
        self.elements(DELETE_ELEMENT, 0, elements, |element| {
            Attributes::new().nest(1, &Attributes::new().bytes(1, &element.key))
        });
    }

    /// Applies everything in one transaction of the kernel's. On a refusal, nothing is changed; the text says
    /// which step was refused.
    pub(super) fn commit(self, socket: &mut Socket) -> Result<(), (String, Refusal)> {
        let bound = |kind| Message::new(kind, 0, &[0, 0, 0, 10], &Attributes::new());
        let (names, mut steps): (Vec<_>, Vec<_>) = self.steps.into_iter().unzip();
        if let Some(last) = steps.last_mut() {
            // The batch's own end is not acknowledged before Linux 6.10.
            last.ask_acknowledgement();
        }
        let mut messages = vec![bound(BATCH_BEGIN)];
        messages.extend(steps);
        messages.push(bound(BATCH_END));
        socket.call_all(&messages).map_err(|refusal| {
            let step = refusal.message.checked_sub(1).and_then(|step| names.get(step));
            (step.cloned().unwrap_or_else(|| "the batch".into()), refusal)
        })
    }

    fn elements(&mut self, kind: u16, flags: u16, elements: &[Element], form: fn(&Element) -> Attributes) {
        for same_map in elements.chunk_by(|a, b| a.map == b.map) {
            for part in same_map.chunks(ELEMENTS_PER_MESSAGE_MAX) {
                let list = part.iter().map(|element| Attributes::new().nest(1, &form(element)));
                let map = part[0].map;
                let wanted =
                    Attributes::new().text(1, self.table).text(2, map).nest(3, &Attributes::join(list));
                self.push(&format!("elements of map {map}"), kind, flags, &wanted);
            }
        }
    }

    fn push(&mut self, step: &str, kind: u16, flags: u16, wanted: &Attributes) {
        let header = [self.family, 0, 0, 0];
        self.steps.push((step.into(), Message::new(SUBSYSTEM | kind, flags, &header, wanted)));
    }
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::new().nest(1, &Attributes::new().text(1, name).nest(2, data))
}

fn compare(register: Register, operation: u32, value: &[u8]) -> Attributes {
    let value = Attributes::new().bytes(1, value);
    let data = Attributes::new().network(1, register.number()).network(2, operation).nest(3, &value);
    expression("cmp", &data)
}

/// The rule goes on only if the register holds `value`.
pub(super) fn equal(register: Register, value: &[u8]) -> Attributes {
    compare(register, 0, value)
}

/// The rule goes on only if the register does not hold `value`.
pub(super) fn differs(register: Register, value: &[u8]) -> Attributes {
    compare(register, 1, value)
}

/// `register &= mask`.
pub(super) fn mask(register: Register, mask: [u8; 4]) -> Attributes {
    let data = Attributes::new()
        .network(1, register.number())
        .network(2, register.number())
        .network(3, 4)
        .nest(4, &Attributes::new().bytes(1, &mask))
        .nest(5, &Attributes::new().bytes(1, &[0; 4]));
    expression("bitwise", &data)
}

fn payload(register: Register, header: u32, offset: u32, length: u32) -> Attributes {
    let data = Attributes::new()
        .network(1, register.number())
        .network(2, header)
        .network(3, offset)
        .network(4, length);
    expression("payload", &data)
}

/// `ip saddr`.
pub(super) fn source(register: Register) -> Attributes {
    payload(register, 1, 12, 4)
}

/// `ip daddr`.
pub(super) fn destination(register: Register) -> Attributes {
    payload(register, 1, 16, 4)
}

/// `ether saddr`, in two registers.
pub(super) fn link_source(register: Register) -> Attributes {
    payload(register, 0, 6, 6)
}

/// `arp saddr ether`, in two registers.
pub(super) fn arp_link_source(register: Register) -> Attributes {
    payload(register, 1, 8, 6)
}

/// `arp saddr ip`.
pub(super) fn arp_source(register: Register) -> Attributes {
    payload(register, 1, 14, 4)
}

/// `th dport`: TCP, UDP and SCTP have it at the same place.
pub(super) fn destination_port(register: Register) -> Attributes {
    payload(register, 2, 2, 2)
}

fn meta(register: Register, key: u32) -> Attributes {
    expression("meta", &Attributes::new().network(1, register.number()).network(2, key))
}

/// `meta protocol`: the EtherType, in network order.
pub(super) fn link_protocol(register: Register) -> Attributes {
    meta(register, 1)
}

/// `meta l4proto`.
pub(super) fn protocol(register: Register) -> Attributes {
    meta(register, 16)
}

/// A link's name as a register compare sees it: 16 bytes, the first four registers.
pub(super) fn link_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// `meta iifname`, in four registers.
pub(super) fn input_link(register: Register) -> Attributes {
    meta(register, 6)
}

/// `meta oifname`, in four registers.
pub(super) fn output_link(register: Register) -> Attributes {
    meta(register, 7)
}

/// `fib daddr type`: what the routing table says of the destination (`RTN_LOCAL`…).
pub(super) fn destination_kind(register: Register) -> Attributes {
    expression("fib", &Attributes::new().network(1, register.number()).network(2, 3).network(3, 2))
}

/// `ct status`, a bit set.
pub(super) fn connection_status(register: Register) -> Attributes {
    expression("ct", &Attributes::new().network(1, register.number()).network(2, 2))
}

/// Looks the key that starts in `key` up; the rule ends if the map has none, else the value is put from `value` on.
pub(super) fn look_up(map: &str, key: Register, value: Register) -> Attributes {
    let data = Attributes::new().text(1, map).network(2, key.number()).network(3, value.number());
    expression("lookup", &data)
}

/// Rewrites the destination to the address and port in the registers.
pub(super) fn rewrite_destination(family: u8, address: Register, port: Register) -> Attributes {
    let data = Attributes::new()
        .network(1, 1)
        .network(2, u32::from(family))
        .network(3, address.number())
        .network(5, port.number());
    expression("nat", &data)
}

/// Rewrites the source to the address of the link that the packet leaves by.
pub(super) fn masquerade() -> Attributes {
    expression("masq", &Attributes::new())
}

fn verdict(code: i32, chain: Option<&str>) -> Attributes {
    let mut verdict = Attributes::new().bytes(1, &code.to_be_bytes());
    if let Some(chain) = chain {
        verdict = verdict.text(2, chain);
    }
    let data = Attributes::new().network(1, 0).nest(2, &Attributes::new().nest(2, &verdict));
    expression("immediate", &data)
}

/// Goes on in `chain`, and comes back.
pub(super) fn jump(chain: &str) -> Attributes {
    verdict(-3, Some(chain))
}

pub(super) fn drop_packet() -> Attributes {
    verdict(0, None)
}
