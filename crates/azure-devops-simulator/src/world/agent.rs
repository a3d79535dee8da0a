//! Registered agents: what the service keeps of each, and how it shows them (protocol section 3).

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    demand::Demand,
    job::Job,
    switches::{CapabilityPrecedence, Switches},
    wire,
};

#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) os_description: Option<String>,
    pub(crate) enabled: bool,
    pub(crate) provisioning_state: String,
    pub(crate) max_parallelism: i64,
    pub(crate) created_on: Timestamp,
    pub(crate) status_changed_on: Option<Timestamp>,
    pub(crate) authorization: Option<Authorization>,
    pub(crate) system_capabilities: Capabilities,
    pub(crate) user_capabilities: Capabilities,
    pub(crate) properties: Option<Value>,
    pub(crate) session: Option<Uuid>,
    pub(crate) online: bool,
    /// The agent said that it ends with its job (`agentShuttingDown`): it gets no more work until
    /// it comes back with a new session.
    pub(crate) shutting_down: bool,
    pub(crate) assigned: Option<i64>,
    pub(crate) last_completed: Option<i64>,
    pub(crate) messages: VecDeque<Message>,
}

#[derive(Clone, Debug)]
pub(crate) struct Authorization {
    pub(crate) client_id: Uuid,
    pub(crate) key: PublicKey,
}

/// An RSA key as agents send it: two base64 strings.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct PublicKey {
    pub(crate) exponent: String,
    pub(crate) modulus: String,
}

/// Names that ignore case, each with the spelling it came in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Capabilities(BTreeMap<String, (String, String)>);

impl Capabilities {
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .values()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn json(&self) -> Value {
        self.pairs()
            .map(|(name, value)| (name.to_owned(), Value::from(value)))
            .collect()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Capabilities {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let pairs = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        Self(
            pairs
                .map(|(name, value)| (name.to_lowercase(), (name, value)))
                .collect(),
        )
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) id: i64,
    pub(crate) request: i64,
    pub(crate) kind: MessageKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageKind {
    Job,
    Cancellation,
}

/// What a client sends to add, replace or change an agent; every field may be absent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AgentBody {
    pub(crate) name: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) os_description: Option<String>,
    pub(crate) enabled: Option<bool>,
    pub(crate) provisioning_state: Option<String>,
    pub(crate) max_parallelism: Option<i64>,
    pub(crate) authorization: Option<AuthorizationBody>,
    pub(crate) system_capabilities: Option<BTreeMap<String, String>>,
    pub(crate) user_capabilities: Option<BTreeMap<String, String>>,
    pub(crate) properties: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AuthorizationBody {
    pub(crate) public_key: Option<PublicKey>,
}

impl Agent {
    pub(crate) fn new(id: i64, body: AgentBody, client_id: Uuid, now: Timestamp) -> Self {
        let mut agent = Self {
            id,
            name: String::new(),
            version: String::new(),
            os_description: None,
            enabled: true,
            provisioning_state: String::new(),
            max_parallelism: 1,
            created_on: now,
            status_changed_on: None,
            authorization: None,
            system_capabilities: Capabilities::default(),
            user_capabilities: Capabilities::default(),
            properties: None,
            session: None,
            online: false,
            shutting_down: false,
            assigned: None,
            last_completed: None,
            messages: VecDeque::new(),
        };
        agent.replace(body, client_id);
        agent
    }

    /// Takes everything from the body, capabilities included (protocol section 3.1); what it does
    /// not name falls back to its default. The client id of an earlier registration stays.
    pub(crate) fn replace(&mut self, body: AgentBody, client_id: Uuid) {
        let key = body
            .authorization
            .and_then(|authorization| authorization.public_key);
        self.name = body.name.unwrap_or_default();
        self.version = body.version.unwrap_or_default();
        self.os_description = body.os_description;
        self.enabled = body.enabled.unwrap_or(true);
        self.provisioning_state = body
            .provisioning_state
            .unwrap_or_else(|| "Provisioned".to_owned());
        self.max_parallelism = body.max_parallelism.unwrap_or(1);
        self.system_capabilities = body
            .system_capabilities
            .unwrap_or_default()
            .into_iter()
            .collect();
        self.user_capabilities = body
            .user_capabilities
            .unwrap_or_default()
            .into_iter()
            .collect();
        self.properties = body.properties;
        let client_id = self
            .authorization
            .as_ref()
            .map_or(client_id, |known| known.client_id);
        self.authorization = key.map(|key| Authorization { client_id, key });
    }

    /// Whether the service may give it a job now, demands aside.
    pub(crate) fn is_free(&self) -> bool {
        self.online && self.enabled && !self.shutting_down && self.assigned.is_none()
    }

    pub(crate) fn satisfies(&self, demands: &[Demand], switches: &Switches) -> bool {
        let capabilities = self.effective_capabilities(switches);
        demands
            .iter()
            .all(|demand| demand.is_met(&capabilities, &self.version, switches))
    }

    /// System and user capabilities together, in lower case.
    fn effective_capabilities(&self, switches: &Switches) -> BTreeMap<String, String> {
        let (weak, strong) = match switches.capability_precedence {
            CapabilityPrecedence::User => (&self.system_capabilities, &self.user_capabilities),
            CapabilityPrecedence::System => (&self.user_capabilities, &self.system_capabilities),
        };
        let pairs = weak.0.iter().chain(&strong.0);
        pairs
            .map(|(name, (_, value))| (name.clone(), value.to_lowercase()))
            .collect()
    }
}

/// Which optional parts of an agent a client asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Include<'a> {
    pub(crate) capabilities: bool,
    pub(crate) assigned: Option<&'a Value>,
    pub(crate) last_completed: Option<&'a Value>,
}

/// Where links and the token endpoint of an organization start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Links<'a> {
    pub(crate) base: &'a str,
    pub(crate) pool: i64,
}

impl Agent {
    /// The full resource.
    pub(crate) fn json(&self, links: Links<'_>, include: Include<'_>) -> Value {
        let mut object = self.reference().json(links, true);
        let authorization = self.authorization.as_ref().map(|known| {
            json!({
                "authorizationUrl": format!("{}/_apis/oauth2/token", links.base),
                "clientId": known.client_id,
                "publicKey": { "exponent": known.key.exponent, "modulus": known.key.modulus },
            })
        });
        let capabilities = |map: &Capabilities, always: bool| {
            let shown = include.capabilities && (always || !map.0.is_empty());
            shown.then(|| map.json())
        };
        let more = json!({
            "maxParallelism": self.max_parallelism,
            "createdOn": wire::time(self.created_on),
            "statusChangedOn": self.status_changed_on.map(wire::time),
            "authorization": authorization,
            "properties": self.properties,
            "systemCapabilities": capabilities(&self.system_capabilities, true),
            "userCapabilities": capabilities(&self.user_capabilities, false),
            "assignedRequest": include.assigned,
            "lastCompletedRequest": include.last_completed,
        });
        if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
            object.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
        }
        object
    }

    /// The agent as it is now, for a job request that outlives it.
    pub(crate) fn reference(&self) -> Reference {
        Reference {
            id: self.id,
            name: self.name.clone(),
            version: self.version.clone(),
            os_description: self.os_description.clone(),
            enabled: self.enabled,
            online: self.online,
            provisioning_state: self.provisioning_state.clone(),
        }
    }

    pub(crate) fn drop_messages_of(&mut self, job: &Job) {
        self.messages.retain(|message| message.request != job.id);
    }
}

/// The short form of an agent.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) id: i64,
    pub(crate) name: String,
    version: String,
    os_description: Option<String>,
    enabled: bool,
    online: bool,
    provisioning_state: String,
}

impl Reference {
    /// `reserved` adds what only the agent that has the job shows (protocol section 4.2).
    pub(crate) fn json(&self, links: Links<'_>, reserved: bool) -> Value {
        let Links { base, pool } = links;
        wire::compact(json!({
            "_links": {
                "self": { "href": format!("{base}/_apis/distributedtask/pools/{pool}/agents/{}", self.id) },
                "web": { "href": format!("{base}/_settings/agentpools?view=jobs&poolId={pool}&agentId={}", self.id) },
            },
            "id": self.id,
            "name": self.name,
            "version": self.version,
            "osDescription": self.os_description.as_ref().filter(|_| reserved),
            "enabled": self.enabled,
            "status": if self.online { "online" } else { "offline" },
            "provisioningState": self.provisioning_state,
            "accessPoint": reserved.then_some("CodexAccessMapping"),
        }))
    }
}
