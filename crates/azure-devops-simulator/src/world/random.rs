//! Randomness from a seed: equal seeds and equal requests give equal worlds.

use uuid::Uuid;

/// The generator called `SplitMix64`: one word of state, good enough for ids and dice, and never
/// for secrets (the tokens of a simulator guard nothing).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub(crate) fn uuid(&mut self) -> Uuid {
        let bits = (u128::from(self.next()) << 64) | u128::from(self.next());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }

    /// True with the given probability between 0 and 1.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        // 32 bits convert to a float without loss.
        let word = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        f64::from(word) / (f64::from(u32::MAX) + 1.0) < probability
    }

    /// A token of 52 lower-case characters, the shape of a personal access token.
    pub(crate) fn token(&mut self) -> String {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        (0..52)
            .map(|_| char::from(ALPHABET[usize::from(self.next().to_be_bytes()[0] & 31)]))
            .collect()
    }
}
