//! Changes to inputs: of bytes as bytes, and of JSON as JSON, since a changed byte of JSON is mostly no JSON any more.
//! The same seed makes the same change.

use serde_json::{Value, json};

/// Random numbers from a seed (`SplitMix64`).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 where there is none.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % limit).unwrap_or(0)
    }
}

/// The input with a few changes, some of which bring parts of the other one.
pub fn mutate(data: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    let structured = json(data).filter(|value| value.is_object() || value.is_array());
    let mut mutated = match structured {
        // Now and then as bytes all the same: what is no JSON has to be refused.
        Some(mut value) if dice.below(16) != 0 => {
            let other = json(other).unwrap_or_default();
            for _ in 0..=dice.below(4) {
                change_json(&mut value, &other, dice);
            }
            return value.to_string().into_bytes();
        }
        _ => data.to_vec(),
    };
    for _ in 0..=dice.below(4) {
        change_bytes(&mut mutated, other, dice);
    }
    mutated
}

fn change_bytes(data: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    const TOKENS: [&[u8]; 12] = [
        b"\0",
        b"\n",
        b" ",
        b"-",
        b"4294967295",
        b"4294967296",
        b"00",
        b"@",
        b"//",
        b"%2f",
        "\u{130}".as_bytes(),
        b"\xff",
    ];
    let at = dice.below(data.len() + 1);
    let end = at + dice.below((data.len() - at).min(8) + 1);
    match dice.below(5) {
        0 => {
            if let Some(byte) = data.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        1 => drop(data.drain(at..end)),
        2 => {
            let token = TOKENS[dice.below(TOKENS.len())];
            data.splice(at..at, token.iter().copied());
        }
        3 => {
            let again = data[at..end].to_vec();
            data.splice(at..at, again);
        }
        _ => {
            let from = dice.below(other.len() + 1);
            let to = from + dice.below(other.len() - from + 1);
            data.splice(at..end, other[from..to].iter().copied());
        }
    }
}

fn change_json(value: &mut Value, other: &Value, dice: &mut Dice) {
    let mut nth = dice.below(count(value));
    if let Some(node) = node_mut(value, &mut nth) {
        change_node(node, other, dice);
    }
}

fn change_node(node: &mut Value, other: &Value, dice: &mut Dice) {
    match (dice.below(5), &mut *node) {
        (0, Value::Array(items)) if !items.is_empty() => {
            let again = items[dice.below(items.len())].clone();
            items.push(again);
        }
        (0, Value::Object(fields)) if !fields.is_empty() => {
            let name = fields.keys().nth(dice.below(fields.len())).cloned();
            fields.remove(&name.unwrap_or_default());
        }
        (1, Value::Array(items)) if !items.is_empty() => {
            items.remove(dice.below(items.len()));
        }
        (0 | 1, Value::String(text)) => change_text(text, dice),
        (0 | 1, Value::Number(number)) => {
            let number = number.as_i64().unwrap_or(0);
            *node = json!(if dice.below(2) == 0 {
                number.wrapping_add(1)
            } else {
                number.wrapping_sub(1)
            });
        }
        (2, _) => {
            let mut other = other.clone();
            let mut nth = dice.below(count(&other));
            if let Some(part) = node_mut(&mut other, &mut nth) {
                *node = part.take();
            }
        }
        _ => *node = special(dice),
    }
}

fn change_text(text: &mut String, dice: &mut Dice) {
    match dice.below(4) {
        0 => *text = text.to_uppercase(),
        1 => drop(text.pop()),
        2 => text.push(['0', ' ', '-', '/', 'x', '\u{130}'][dice.below(6)]),
        _ => text.insert(0, ['0', ' ', '-', '/', 'x', '\u{130}'][dice.below(6)]),
    }
}

/// Values at the edges of what is expected.
fn special(dice: &mut Dice) -> Value {
    const TEXTS: [&str; 14] = [
        "",
        " ",
        "true",
        "false",
        "9999-12-30T22:00:00Z",
        "-009999-01-02T01:59:59Z",
        "0001-01-01T00:00:00",
        "web-agent-0",
        "web-agent-4294967295",
        "WEB-agent-1",
        "web-placeholder-base",
        "online",
        "offline",
        "cluster/ci/web",
    ];
    let numbers = [
        json!(0),
        json!(-1),
        json!(100),
        json!(u32::MAX),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e308),
    ];
    let others = [json!(null), json!(true), json!(false), json!([]), json!({})];
    match dice.below(3) {
        0 => json!(TEXTS[dice.below(TEXTS.len())]),
        1 => numbers[dice.below(numbers.len())].clone(),
        _ => others[dice.below(others.len())].clone(),
    }
}

/// How many values there are in a value, itself among them.
fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// The value of this number; counts it down on the way.
fn node_mut<'a>(value: &'a mut Value, nth: &mut usize) -> Option<&'a mut Value> {
    if *nth == 0 {
        return Some(value);
    }
    *nth -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| node_mut(item, nth)),
        Value::Object(fields) => fields.values_mut().find_map(|field| node_mut(field, nth)),
        _ => None,
    }
}
