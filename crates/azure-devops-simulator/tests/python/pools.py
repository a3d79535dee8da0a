"""Drives the simulator with Microsoft's own client: pools, agents, job requests.

The simulator has pool "linux" with agent "worker", which runs the first of two jobs that demand
java; the second one waits.
"""

import os

from azure.devops.connection import Connection
from azure.devops.exceptions import AzureDevOpsAuthenticationError, AzureDevOpsServiceError
from azure.devops.v7_1.task_agent.models import TaskAgent
from msrest.authentication import BasicAuthentication

connection = Connection(
    base_url=os.environ["AZURE_DEVOPS_URL"],
    creds=BasicAuthentication("", os.environ["AZURE_DEVOPS_PAT"]),
)
client = connection.get_client("azure.devops.v7_1.task_agent.task_agent_client.TaskAgentClient")


def refused(call, type_key, text):
    try:
        call()
    except AzureDevOpsServiceError as error:
        assert error.type_key == type_key, error.type_key
        assert text in error.message, error.message
    else:
        raise AssertionError(f"not refused with {type_key}")


# Pools.
assert client.get_agent_pools(pool_name="none") == []
(pool,) = client.get_agent_pools(pool_name="linux", pool_type="automation")
assert (pool.name, pool.size, pool.is_hosted) == ("linux", 1, False), pool
assert client.get_agent_pool(pool.id).name == "linux"
refused(lambda: client.get_agent_pool(99), "TaskAgentPoolNotFoundException", "identifier 99")

# A busy agent, with all that can be included.
(worker,) = client.get_agents(
    pool.id, agent_name="WORKER", include_capabilities=True, include_assigned_request=True
)
assert (worker.status, worker.enabled) == ("online", True), worker
assert worker.system_capabilities["java"] == "/usr/bin/java"
assert worker.authorization.public_key.modulus
assert worker.assigned_request.receive_time and worker.assigned_request.result is None
assert worker.assigned_request.demands == ["java"]
busy = worker.assigned_request.request_id
(bare,) = client.get_agents(pool.id)
assert bare.system_capabilities is None and bare.assigned_request is None
refused(
    lambda: client.delete_agent(pool.id, worker.id),
    "TaskAgentJobStillRunningException",
    'Agent "worker" is running a job for pool "linux"',
)

# Add, find by demand, disable, change user capabilities, replace, delete.
placeholder = TaskAgent(
    name="placeholder", version="99.999.9", system_capabilities={"java": "", "Agent.Version": "99.999.9"}
)
added = client.add_agent(placeholder, pool.id)
assert (added.status, added.enabled, added.version) == ("offline", True, "99.999.9"), added
refused(lambda: client.add_agent(placeholder, pool.id), "TaskAgentExistsException", "placeholder")
found = client.get_agents(pool.id, demands=["java"])
assert sorted(agent.name for agent in found) == ["placeholder", "worker"]
disabled = client.update_agent(
    TaskAgent(id=added.id, name="placeholder", enabled=False), pool.id, added.id
)
assert disabled.enabled is False
assert client.get_agent(pool.id, added.id).enabled is False
replaced = client.replace_agent(
    TaskAgent(id=added.id, name="placeholder", version="1.0", system_capabilities={"go": "1"}),
    pool.id,
    added.id,
)
assert (replaced.id, replaced.system_capabilities) == (added.id, {"go": "1"}), replaced
client.delete_agent(pool.id, added.id)
refused(lambda: client.get_agent(pool.id, added.id), "TaskAgentNotFoundException", str(added.id))

# Job requests are not in the generated Python methods; its discovery and transport serve them.
response = client._send(
    http_method="GET",
    location_id="fc825784-c92a-4299-9221-998a02d1b54f",
    version="7.1-preview.1",
    route_values={"poolId": pool.id},
    query_parameters={"completedRequestCount": 0},
)
requests = client._deserialize("[TaskAgentJobRequest]", client._unwrap_collection(response))
by_id = {request.request_id: request for request in requests}
assert len(by_id) == 2, by_id
waiting = by_id[max(by_id)]
assert by_id[busy].reserved_agent.name == "worker"
assert by_id[busy].locked_until > by_id[busy].receive_time
assert waiting.reserved_agent is None and waiting.result is None
assert [agent.name for agent in waiting.matched_agents] == ["worker"]

# A dead token: this client asks for no sign-in page and gets a 401.
dead = Connection(
    base_url=os.environ["AZURE_DEVOPS_URL"], creds=BasicAuthentication("", "dead")
).get_client("azure.devops.v7_1.task_agent.task_agent_client.TaskAgentClient")
try:
    dead.get_agent_pools()
except AzureDevOpsAuthenticationError as error:
    assert "requires user authentication" in str(error), error
else:
    raise AssertionError("a dead token was accepted")
