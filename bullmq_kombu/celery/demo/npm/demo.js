// The Node half of the demo: a producer for Celery's queue and a worker for its own. Plain BullMQ; nothing here knows Celery.
//
//   node demo.js <queue of the Celery worker> <queue of this one's worker>
//
// Input: one line with the connection, then one line for each thing to do. Output: JSON lines, see node.py.
'use strict';

const readline = require('node:readline');
const { Queue, QueueEvents, Worker } = require('bullmq');

const [celeryQueue, nodeQueue] = process.argv.slice(2);
const send = (message) => process.stdout.write(JSON.stringify(message) + '\n');
const say = (text) => send({ say: text });

async function main() {
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const connection = JSON.parse((await lines.next()).value);

  const queue = new Queue(celeryQueue, { connection });
  const events = new QueueEvents(celeryQueue, { connection });
  const own = new Queue(nodeQueue, { connection });
  const worker = new Worker(nodeQueue, async (job) => {
    say(`processor: job ${job.id}, ${job.name} ${JSON.stringify(job.data)}`);
    return { sent: job.data.to };
  }, { connection });
  for (const one of [queue, events, own, worker]) one.on('error', (error) => say(`error: ${error.message}`));
  await Promise.all([events.waitUntilReady(), worker.waitUntilReady()]);
  say(`BullMQ ${require('bullmq/package.json').version}: a worker takes the jobs of queue ${nodeQueue}`);

  async function add(name, data, opts) {
    const job = await queue.add(name, data, opts);
    say(`queue.add(${[name, data, ...(opts ? [opts] : [])].map((one) => JSON.stringify(one)).join(', ')}) made job ${job.id}`);
    return job;
  }

  const commands = {
    async greet() {
      const job = await add('demo.greet', { name: 'Ada' });
      expect('job.waitUntilFinished() gives', await job.waitUntilFinished(events), 'Hello Ada');
    },
    async flaky() {
      const job = await add('demo.flaky', {}, { attempts: 3, backoff: { type: 'exponential', delay: 200 } });
      expect('job.waitUntilFinished() gives', await job.waitUntilFinished(events), 'worked at attempt 3');
    },
    async divide() {
      const job = await add('demo.divide', { a: 1, b: 0 });
      const reason = await job.waitUntilFinished(events).then(() => 'no error', (error) => error.message);
      expect('job.waitUntilFinished() throws', reason, 'ZeroDivisionError: division by zero');
    },
    async state(id) {
      expect(`queue.getJobState(${JSON.stringify(id)}) gives`, await own.getJobState(id), 'delayed');
    },
  };

  send({ done: 'start' });
  for await (const line of lines) {
    const [command, ...args] = line.split(' ');
    try {
      await commands[command](...args);
      send({ done: command });
    } catch (error) {
      send({ error: String(error.message) });
    }
  }
  await Promise.all([worker.close(), queue.close(), own.close(), events.close()]);
}

function expect(what, value, wanted) {
  say(`${what} ${JSON.stringify(value)}`);
  if (value !== wanted) throw new Error(`${what} ${JSON.stringify(value)} and not ${JSON.stringify(wanted)}`);
}

main().catch((error) => {
  send({ error: String(error.stack) });
  process.exitCode = 1;
});
