// Drives the simulator with Microsoft's Node client: discovery by area, agents, job requests.
//
// The simulator has pool "linux" with agent "worker", which runs the first of two jobs that
// demand java; the second one waits.

const assert = require("node:assert/strict");
const azure = require("azure-devops-node-api");
const { TaskAgentStatus } = require("azure-devops-node-api/interfaces/TaskAgentInterfaces");

async function main() {
  const handler = azure.getPersonalAccessTokenHandler(process.env.AZURE_DEVOPS_PAT);
  const connection = new azure.WebApi(process.env.AZURE_DEVOPS_URL, handler);
  const client = await connection.getTaskAgentApi();

  assert.deepEqual(await client.getAgentPools("none"), []);
  const [pool] = await client.getAgentPools("linux");
  assert.equal(pool.size, 1);

  const [worker] = await client.getAgents(pool.id, "worker", true, true);
  assert.equal(worker.status, TaskAgentStatus.Online);
  assert.equal(worker.systemCapabilities.java, "/usr/bin/java");
  assert.ok(worker.assignedRequest.receiveTime instanceof Date);
  await assert.rejects(client.deleteAgent(pool.id, worker.id), /is running a job for pool "linux"/);

  const unfinished = await client.getAgentRequestsForAgent(pool.id, worker.id, 0);
  assert.deepEqual(
    unfinished.map((request) => request.requestId),
    [worker.assignedRequest.requestId],
  );
  const page = await client.getAgentRequests(pool.id, 10);
  assert.equal(page.length, 2);
  assert.ok(page.every((request) => request.matchedAgents === undefined));

  const added = await client.addAgent({ name: "placeholder", version: "99.999.9" }, pool.id);
  assert.equal(added.status, TaskAgentStatus.Offline);
  await assert.rejects(client.addAgent({ name: "PLACEHOLDER" }, pool.id), { statusCode: 409 });
  const disabled = await client.updateAgent(
    { id: added.id, name: added.name, enabled: false },
    pool.id,
    added.id,
  );
  assert.equal(disabled.enabled, false);
  await client.deleteAgent(pool.id, added.id);
  assert.equal((await client.getAgents(pool.id)).length, 1);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
