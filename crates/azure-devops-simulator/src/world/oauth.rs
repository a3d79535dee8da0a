//! The token endpoint for agents: a signed assertion in, an access token out (protocol section
//! 7.3).

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jiff::Timestamp;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    World,
    access::{Holder, Token},
    agent::PublicKey,
    message::{Reply, Request},
};

/// The claims of an assertion that matter here.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    nbf: i64,
    exp: i64,
}

/// Clocks of agents may differ from ours by that much: five minutes, the usual tolerance.
const SKEW_SECONDS: i64 = 300;

impl World {
    pub(crate) fn token(&mut self, now: Timestamp, request: &Request) -> Reply {
        match self.verify(now, request) {
            Ok(holder) => {
                let life = self.settings.switches.agent_token_life;
                let token = self.issue(holder, now, now + life);
                Reply::ok(&json!({
                    "access_token": token,
                    "token_type": "jwt",
                    "expires_in": life.as_secs(),
                    "scope": "LocationService.Connect AgentPool.Listen",
                }))
            }
            Err((error, description)) => Reply::with_json(
                400,
                &json!({ "error": error, "error_description": description }),
            ),
        }
    }

    pub(crate) fn issue(&mut self, holder: Holder, now: Timestamp, expires: Timestamp) -> String {
        // Sweeping at each doubling keeps the cost per token constant.
        if self.tokens.len().is_power_of_two() {
            self.tokens.retain(|_, token| token.expires > now);
        }
        let value = self.random.token();
        self.tokens.insert(value.clone(), Token { holder, expires });
        value
    }

    fn verify(&self, now: Timestamp, request: &Request) -> Result<Holder, (&'static str, String)> {
        let field = |name: &str| {
            let mut pairs = url::form_urlencoded::parse(&request.body);
            pairs
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        if field("grant_type").as_deref() != Some("client_credentials") {
            return Err((
                "unsupported_grant_type",
                "client_credentials is expected".to_owned(),
            ));
        }
        let bad = || {
            (
                "invalid_client",
                "The client assertion is malformed.".to_owned(),
            )
        };
        let assertion = field("client_assertion").ok_or_else(bad)?;
        let (signed, signature) = assertion.rsplit_once('.').ok_or_else(bad)?;
        let (_, payload) = signed.split_once('.').ok_or_else(bad)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| bad())?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| bad())?;
        let client = Uuid::parse_str(&claims.iss).map_err(|_| bad())?;
        if claims.iss != claims.sub {
            return Err(bad());
        }
        let unknown = || {
            (
                "invalid_client",
                format!("Registration {client} was not found."),
            )
        };
        let (holder, key) = self.client(client).ok_or_else(unknown)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| bad())?;
        if !key.verifies(signed.as_bytes(), &signature) {
            return Err((
                "invalid_client",
                "The signature of the assertion is invalid.".to_owned(),
            ));
        }
        let seconds = now.as_second();
        if seconds + SKEW_SECONDS < claims.nbf || seconds - SKEW_SECONDS > claims.exp {
            // The agent looks for these words and retries for half an hour.
            return Err((
                "invalid_client",
                format!("The assertion is out of time. Current server time is {now}."),
            ));
        }
        Ok(holder)
    }

    fn client(&self, client: Uuid) -> Option<(Holder, &PublicKey)> {
        let (pool, agent) = *self.clients.get(&client)?;
        let known = self
            .pool(pool)?
            .agents
            .get(&agent)?
            .authorization
            .as_ref()?;
        (known.client_id == client).then_some((Holder::Agent { pool, agent }, &known.key))
    }
}

impl PublicKey {
    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let (Ok(n), Ok(e)) = (
            STANDARD.decode(&self.modulus),
            STANDARD.decode(&self.exponent),
        ) else {
            return false;
        };
        let key = RsaPublicKeyComponents {
            n: strip(&n),
            e: strip(&e),
        };
        key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            .is_ok()
    }
}

/// Without leading zeros, which .NET may send and the verifier refuses.
fn strip(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}
