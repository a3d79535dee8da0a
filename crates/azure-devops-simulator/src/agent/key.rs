//! The RSA key that simulated agents register and sign with.
//!
//! All agents share one fixed key pair. Generating one takes a noticeable time per agent and a
//! big-number library; what the simulator checks, a signature against the registered key, is the
//! same. The key protects nothing, and `openssl genpkey -algorithm RSA -outform DER` makes
//! another one at any time.

use std::sync::LazyLock;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jiff::Timestamp;
use ring::{
    rand::SystemRandom,
    rsa::{KeyPair, PublicKeyComponents},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use serde_json::{Value, json};
use uuid::Uuid;

static KEY: LazyLock<KeyPair> = LazyLock::new(|| {
    KeyPair::from_pkcs8(include_bytes!("key.pk8"))
        .expect("the file next to this one is a valid key")
});

/// The public half as an agent sends it.
pub(super) fn public_key() -> Value {
    let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(KEY.public_key());
    json!({ "exponent": STANDARD.encode(e), "modulus": STANDARD.encode(n) })
}

/// A signed assertion of who the agent is (protocol section 7.3).
pub(super) fn assertion(client_id: &str, audience: &str) -> String {
    const LIFE_SECONDS: i64 = 300;
    let now = Timestamp::now().as_second();
    let header = json!({ "alg": "RS256", "typ": "JWT" });
    let claims = json!({
        "iss": client_id,
        "sub": client_id,
        "aud": audience,
        "jti": Uuid::new_v4(),
        "nbf": now,
        "exp": now + LIFE_SECONDS,
    });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let mut signature = vec![0; KEY.public().modulus_len()];
    KEY.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        signed.as_bytes(),
        &mut signature,
    )
    .expect("a buffer of the modulus' length always takes the signature");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
