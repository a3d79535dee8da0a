//! How clients find their way: `connectionData` for the .NET family, `OPTIONS` for the Python and
//! Node packages (protocol sections 1.2 and 1.3).

use serde_json::{Value, json};
use uuid::Uuid;

/// One API location.
struct Location {
    area: &'static str,
    resource: &'static str,
    id: &'static str,
    /// With holes by name; `{area}` and `{resource}` are filled from the entry itself.
    template: &'static str,
}

const fn task(resource: &'static str, id: &'static str, template: &'static str) -> Location {
    Location {
        area: "distributedtask",
        resource,
        id,
        template,
    }
}

const LOCATIONS: &[Location] = &[
    task(
        "pools",
        "a8c47e17-4d56-4a56-92bb-de7ea7dc65be",
        "_apis/{area}/{resource}/{poolId}",
    ),
    task(
        "agents",
        "e298ef32-5878-4cab-993c-043836571f42",
        "_apis/{area}/pools/{poolId}/{resource}/{agentId}",
    ),
    task(
        "jobrequests",
        "fc825784-c92a-4299-9221-998a02d1b54f",
        "_apis/{area}/pools/{poolId}/{resource}/{requestId}",
    ),
    task(
        "sessions",
        "134e239e-2df3-4794-a6f6-24f1f19ec8dc",
        "_apis/{area}/pools/{poolId}/{resource}/{sessionId}",
    ),
    task(
        "messages",
        "c3a054f6-7a8a-49c0-944e-3a8e5d7adfd7",
        "_apis/{area}/pools/{poolId}/{resource}/{messageId}",
    ),
    task(
        "usercapabilities",
        "30ba3ada-fedf-4da8-bbb5-dacf2f82e176",
        "_apis/{area}/pools/{poolId}/agents/{agentId}/{resource}",
    ),
    task(
        "packages",
        "8ffcd551-079c-493a-9c02-54346299d144",
        "_apis/{area}/{resource}/{packageType}/{platform}/{version}",
    ),
    task(
        "events",
        "557624af-b29e-4c20-8ab0-0399d2204f3f",
        "{scopeIdentifier}/_apis/{area}/hubs/{hubName}/plans/{planId}/{resource}",
    ),
    task(
        "timelines",
        "83597576-cc2c-453c-bea6-2882ae6a1653",
        "{scopeIdentifier}/_apis/{area}/hubs/{hubName}/plans/{planId}/{resource}/{timelineId}",
    ),
    task(
        "records",
        "8893bc5b-35b2-4be7-83cb-99e683551db4",
        "{scopeIdentifier}/_apis/{area}/hubs/{hubName}/plans/{planId}/timelines/{timelineId}/{resource}/{recordId}",
    ),
    task(
        "logs",
        "46f5667d-263a-4684-91b1-dff7fdcf64e2",
        "{scopeIdentifier}/_apis/{area}/hubs/{hubName}/plans/{planId}/{resource}/{logId}",
    ),
    task(
        "feed",
        "858983e4-19bd-4c5e-864c-507b59b58b12",
        "{scopeIdentifier}/_apis/{area}/hubs/{hubName}/plans/{planId}/timelines/{timelineId}/records/{recordId}/{resource}",
    ),
    Location {
        area: "Location",
        resource: "connectionData",
        id: "00d9565f-ed9c-4a06-9a50-00e7896ccab4",
        template: "_apis/{resource}",
    },
    Location {
        area: "Location",
        resource: "resourceAreas",
        id: "e81700f7-3be2-46de-8624-2eb35882fcaa",
        template: "_apis/{resource}/{areaId}",
    },
];

/// The answer's elements for `OPTIONS _apis[/{area}]`.
pub(crate) fn locations(area: Option<&str>, latest: &str) -> Vec<Value> {
    let latest: f64 = latest.parse().unwrap_or(1.0);
    let wanted = LOCATIONS
        .iter()
        .filter(|location| area.is_none_or(|area| location.area.eq_ignore_ascii_case(area)));
    wanted
        .map(|location| {
            json!({
                "id": location.id,
                "area": location.area,
                "resourceName": location.resource,
                "routeTemplate": location.template,
                "resourceVersion": 1,
                "minVersion": 1.0,
                "maxVersion": latest,
                "releasedVersion": RELEASED,
            })
        })
        .collect()
}

/// The newest version that needs no `-preview`: the pages of Microsoft's reference show 7.1.
const RELEASED: &str = "7.1";

/// `connectionData`: who one is, and where everything is.
pub(crate) fn connection_data(instance: Uuid, base: &str, user: &str) -> Value {
    let user_id = Uuid::from_u128(1);
    let user = json!({
        "id": user_id,
        "descriptor": format!("Microsoft.TeamFoundation.ServiceIdentity;{user_id}"),
        "providerDisplayName": user,
        "isActive": true,
    });
    let definitions: Vec<Value> = LOCATIONS
        .iter()
        .map(|location| {
            let path = location
                .template
                .replace("{area}", location.area)
                .replace("{resource}", location.resource);
            json!({
                "serviceType": location.area,
                "identifier": location.id,
                "displayName": location.resource,
                "relativeToSetting": "fullyQualified",
                "relativePath": format!("/{path}"),
                "description": "",
                "serviceOwner": "00000000-0000-0000-0000-000000000000",
                "resourceVersion": 6,
                "minVersion": "1.0",
                "maxVersion": "12.0",
                "releasedVersion": RELEASED,
            })
        })
        .collect();
    json!({
        "authenticatedUser": user,
        "authorizedUser": user,
        "instanceId": instance,
        "deploymentId": Uuid::from_u128(2),
        "deploymentType": "hosted",
        "locationServiceData": {
            "serviceOwner": "00025394-6065-48ca-87d9-7f5672854ef7",
            "defaultAccessMappingMoniker": "PublicAccessMapping",
            "accessMappings": [{
                "displayName": "Public Access Mapping",
                "moniker": "PublicAccessMapping",
                "accessPoint": base,
                "serviceOwner": "00000000-0000-0000-0000-000000000000",
            }],
            "clientCacheFresh": false,
            "clientCacheTimeToLive": 3600,
            "lastChangeId": 1,
            "lastChangeId64": 1,
            "serviceDefinitions": definitions,
        },
    })
}
