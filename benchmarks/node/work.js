// Node's BullMQ at the same work as the Python scripts beside: one JSON line out.
//
//   node work.js <directory with node_modules/bullmq> <port> <work> [numbers …]
//
// Works: add COUNT · addBulk COUNT BATCH · worker COUNT CONCURRENCY · latency COUNT · trip COUNT · fill COUNT IDS NAME DATA OPTS · idle QUEUES
'use strict';

const { createRequire } = require('node:module');
const { fork } = require('node:child_process');
const { randomUUID } = require('node:crypto');
const path = require('node:path');

const [home, port, work, ...given] = process.argv.slice(2);
const load = createRequire(path.join(path.resolve(home), 'package.json'));
const { Queue, QueueEvents, Worker } = load('bullmq');
const Redis = load('ioredis');

const connection = { host: '127.0.0.1', port: Number(port), maxRetriesPerRequest: null };
const payload = { n: 1, text: 'x'.repeat(50) };
const name = 'bench';
// What Celery's messages have when nothing else is said, so that both sides do the same work.
const kept = { removeOnComplete: { age: 86400, count: 1000 }, removeOnFail: { age: 604800, count: 5000 } };
const redis = new Redis(connection);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const now = () => performance.timeOrigin + performance.now();

async function serverCpu() {
  const info = await redis.info('cpu');
  return ['used_cpu_user', 'used_cpu_sys'].reduce((sum, field) => sum + Number(info.match(new RegExp(`^${field}:(.*)$`, 'm'))[1]), 0);
}

async function metered(jobs, body) {
  const server = await serverCpu();
  const cpu = process.cpuUsage();
  const began = performance.now();
  await body();
  const wall = performance.now() - began;
  const { user, system } = process.cpuUsage(cpu);
  return { wall: (wall * 1000) / jobs, client: (user + system) / jobs, server: (((await serverCpu()) - server) * 1e6) / jobs };
}

async function addMany(queue, count, batch) {
  for (let left = count; left > 0; left -= batch) {
    await queue.addBulk(Array.from({ length: Math.min(batch, left) }, () => ({ name: 'job', data: payload, opts: kept })));
  }
}

const works = {
  async add(count) {
    const queue = new Queue(name, { connection });
    await queue.add('job', payload, kept);
    return { add: await metered(count, async () => {
      for (let i = 0; i < count; i++) await queue.add('job', payload, kept);
    }) };
  },

  async addBulk(count, batch) {
    const queue = new Queue(name, { connection });
    await queue.add('job', payload, kept);
    return { addBulk: await metered(count, () => addMany(queue, count, batch)) };
  },

  async worker(count, concurrency) {
    const queue = new Queue(name, { connection });
    await addMany(queue, count, 1000);
    const worker = new Worker(name, async () => {}, { connection, concurrency, autorun: false });
    await worker.waitUntilReady();
    const cost = await metered(count, () => new Promise((resolve) => {
      let done = 0;
      worker.on('completed', () => {
        if (++done === count) resolve();
      });
      worker.run();
    }));
    await worker.close();
    return { [`worker, concurrency ${concurrency}`]: cost };
  },

  // The worker is a process of its own, as Celery's is.
  async latency(count) {
    const child = fork(__filename, [home, port, 'latencyWorker']);
    await new Promise((resolve) => child.once('message', resolve));
    const queue = new Queue(name, { connection });
    for (let i = 0; i < 5; i++) await queue.add('warm', {});
    for (let i = 0; i < count; i++) {
      await sleep(15 + Math.random() * 20);
      await queue.add('job', { sent: now() });
    }
    await sleep(50);
    child.send('tell');
    const samples = await new Promise((resolve) => child.once('message', resolve));
    child.kill();
    return { latency: { samples: samples.map((ms) => ms * 1000) } };
  },

  async latencyWorker() {
    const samples = [];
    const worker = new Worker(name, async (job) => {
      if (job.name === 'job') samples.push(now() - job.data.sent);
    }, { connection });
    await worker.waitUntilReady();
    process.on('message', () => process.send(samples));
    process.send('ready');
    await new Promise(() => {});
  },

  async trip(count) {
    const child = fork(__filename, [home, port, 'latencyWorker']);
    await new Promise((resolve) => child.once('message', resolve));
    const queue = new Queue(name, { connection });
    const events = new QueueEvents(name, { connection });
    await events.waitUntilReady();
    const samples = [];
    for (let i = 0; i < count + 5; i++) {
      const began = performance.now();
      const job = await queue.add('warm', {});
      await job.waitUntilFinished(events);
      if (i >= 5) samples.push((performance.now() - began) * 1000);
    }
    child.kill();
    return { 'round trip': { samples } };
  },

  // Jobs like somebody else's: their name, data and options are given, and whether they have ids of their own (uuid) or numbers.
  async fill(count, ids, job, data, opts) {
    const own = () => (ids === 'uuid' ? { jobId: randomUUID() } : {});
    const queue = new Queue(name, { connection });
    for (let left = count; left > 0; left -= 500) {
      const jobs = Array.from({ length: Math.min(500, left) }, () => ({ name: job, data: JSON.parse(data), opts: { ...JSON.parse(opts), ...own() } }));
      await queue.addBulk(jobs);
    }
    return {};
  },

  async drain(count) {
    const worker = new Worker(name, async () => {}, { connection, concurrency: 50, autorun: false });
    await new Promise((resolve) => {
      let done = 0;
      worker.on('completed', () => {
        if (++done === count) resolve();
      });
      worker.run();
    });
    await worker.close();
    return {};
  },

  async idle(queues) {
    await Promise.all(Array.from({ length: queues }, async (_, i) => {
      await new Worker(`q${i}`, async () => {}, { connection }).waitUntilReady();
    }));
    console.log('ready');
    await new Promise(() => {});
  },
};

const number = (text) => (/^\d+$/.test(text) ? Number(text) : text);
works[work](...given.map(number)).then(
  (result) => {
    console.log(JSON.stringify(result));
    process.exit(0);
  },
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
