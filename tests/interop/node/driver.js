// A BullMQ that is told what to do: JSON lines in, JSON lines out.
//
//   node driver.js <directory with node_modules/bullmq>
//
// One idea: everything a test wants of Node goes through one process that stays, so that starting Node is paid for once. The same file
// drives every major version; where they differ, the difference is the test's business and not hidden here.
//
// Request:       {id, cmd, ...}             answered by {id, ok: true, value} or {id, ok: false, error: {name, message, code, stack}}
// Notification:  {event, at, ...}           whenever something happens in a worker
//
// Requests run side by side: an answer may overtake another. The commands are the methods of `commands` below. Arguments may hold
// {"$error": message, "name": class} where BullMQ wants an Error.
'use strict';

const { createRequire } = require('node:module');
const path = require('node:path');
const readline = require('node:readline');

const home = path.resolve(process.argv[2]);
const load = createRequire(path.join(home, 'package.json'));
const bullmq = load('bullmq');
const Redis = load('ioredis');

let connection = null; // ioredis options, from `init`; every client is made from a copy
const queues = new Map(); // "prefix:queue" -> Queue
const listeners = new Map(); // "prefix:queue" -> {queueEvents, seen}
const flows = new Map(); // prefix -> FlowProducer
const workers = new Map(); // worker id -> {worker, queue, behaviours, otherwise}
const manual = new Map(); // "prefix:queue" -> Worker without a processor
const held = new Map(); // "prefix:queue:job" -> Job taken by getNextJob
const gates = new Map(); // gate name -> {open, waiting: [resolve]}
let runs = []; // every call of a processor, in order of its start
let workerCount = 0;
let stoppedAt = null; // what the clock says while it stands still

globalThis.Date = class extends Date {
  constructor(...args) {
    super(...(args.length === 0 && stoppedAt !== null ? [stoppedAt] : args));
  }
  static now() {
    return stoppedAt ?? super.now();
  }
};

// ---------------------------------------------------------------------------------------------------------------- wire

const send = (message) => process.stdout.write(JSON.stringify(message) + '\n');
const notify = (event, details) => send({ event, at: Date.now(), ...view(details) });

function viewError(error) {
  if (!(error instanceof Error)) return { name: 'NotAnError', message: String(error), code: null, stack: null };
  return { name: error.name, message: error.message, code: error.code ?? null, stack: error.stack ?? null };
}

// All that a job knows, as values and not as the strings of its hash. Absent is null.
function viewJob(job) {
  const fields = [
    'id', 'name', 'queueName', 'prefix', 'data', 'opts', 'timestamp', 'delay', 'priority', 'progress', 'returnvalue', 'failedReason',
    'deferredFailure', 'stacktrace', 'attemptsMade', 'attemptsStarted', 'stalledCounter', 'processedBy', 'processedOn', 'finishedOn',
    'parent', 'parentKey', 'deduplicationId', 'repeatJobKey', 'token',
  ];
  return Object.fromEntries(fields.map((field) => [field, view(job[field])]));
}

function view(value) {
  if (value === undefined || value === null) return null;
  if (typeof value === 'bigint') return Number(value);
  if (typeof value === 'function' || typeof value === 'symbol') return `[${typeof value}]`;
  if (typeof value !== 'object') return value;
  if (value instanceof bullmq.Job) return viewJob(value);
  if (value instanceof Error) return viewError(value);
  if (value instanceof Date) return value.getTime();
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, view(item)]));
  if (value instanceof Set) return [...value].map(view);
  if (Array.isArray(value)) return value.map(view);
  const prototype = Object.getPrototypeOf(value);
  // Queues, workers and clients refer to one another in circles, and say nothing a test could use.
  if (prototype !== null && Object.getPrototypeOf(prototype) !== null) return `[${prototype.constructor.name}]`;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, view(item)]));
}

function revive(value) {
  if (Array.isArray(value)) return value.map(revive);
  if (value === null || typeof value !== 'object') return value;
  if ('$error' in value) {
    const Kind = value.name ? (bullmq[value.name] ?? globalThis[value.name]) : Error;
    if (Kind) return new Kind(value.$error);
    return Object.assign(new Error(value.$error), { name: value.name });
  }
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, revive(item)]));
}

const optional = (value) => value ?? undefined;

function fault(name, message) {
  return Object.assign(new Error(message), { name });
}

// ---------------------------------------------------------------------------------------------------------------- things

function fresh() {
  if (!connection) throw fault('NotInitialised', 'send init first');
  return { ...connection };
}

const keyOf = ({ queue, prefix }) => `${prefix ?? 'bull'}:${queue}`;
const base = ({ prefix }) => ({ connection: fresh(), prefix: prefix ?? 'bull' });

function watch(emitter, source) {
  // Without a listener, 'error' ends the process; a lost connection is part of some tests.
  emitter.on('error', (error) => notify('error', { source, error: viewError(error) }));
  return emitter;
}

function queueOf(request, opts = {}) {
  const key = keyOf(request);
  if (!queues.has(key)) queues.set(key, watch(new bullmq.Queue(request.queue, { ...opts, ...base(request) }), `queue ${key}`));
  return queues.get(key);
}

function flowOf(request) {
  const key = request.prefix ?? 'bull';
  if (!flows.has(key)) flows.set(key, watch(new bullmq.FlowProducer(base(request)), `flow ${key}`));
  return flows.get(key);
}

async function jobOf(request) {
  const job = await queueOf(request).getJob(request.jobId);
  if (!job) throw fault('JobNotFound', `no job ${request.jobId} in ${keyOf(request)}`);
  return job;
}

function heldJob(request) {
  const job = held.get(`${keyOf(request)}:${request.jobId}`);
  if (!job) throw fault('JobNotHeld', `getNextJob never gave ${request.jobId} of ${keyOf(request)}`);
  return job;
}

// "From now on" has to be a place in the stream. Left to '$', it would be the moment of the first XREAD, some time after the client calls
// itself ready, and what happened between would be missed now and then.
async function endOfStream(key) {
  const client = new Redis(fresh());
  client.on('error', () => {});
  try {
    const last = await client.xrevrange(`${key}:events`, '+', '-', 'COUNT', 1);
    return last.length ? last[0][0] : '0-0';
  } finally {
    client.disconnect();
  }
}

function listenerOf(request) {
  const key = keyOf(request);
  if (!listeners.has(key)) {
    const opening = openListener(key, request);
    listeners.set(key, opening);
    opening.catch(() => listeners.delete(key));
  }
  return listeners.get(key);
}

async function openListener(key, request) {
  const lastEventId = request.lastEventId ?? (await endOfStream(key));
  const queueEvents = watch(new bullmq.QueueEvents(request.queue, { ...base(request), lastEventId, autorun: false }), `events ${key}`);
  const seen = [];
  // Any event, whatever its name: taken where they are all emitted, since a list of names would hide the unexpected ones. The client
  // emits results a second time under a name with the job's id; and its own affairs ('error', 'ready') have no stream id.
  const emit = queueEvents.emit.bind(queueEvents);
  queueEvents.emit = (event, ...args) => {
    const id = args[args.length - 1];
    if (typeof id === 'string' && /^\d+-\d+$/.test(id) && !event.includes(':')) {
      seen.push({ event, args: args.length > 1 ? view(args[0]) : {}, id });
    }
    return emit(event, ...args);
  };
  await queueEvents.waitUntilReady();
  queueEvents.run().catch((error) => notify('error', { source: `events ${key}`, error: viewError(error) }));
  return { queueEvents, seen };
}

// ---------------------------------------------------------------------------------------------------------------- telemetry

let exporter = null;

// From the first call on, what is opened with it is traced by bullmq-otel, and the spans are kept here.
function telemetry() {
  const { BullMQOtel } = load('bullmq-otel');
  if (!exporter) {
    const api = load('@opentelemetry/api');
    const sdk = load('@opentelemetry/sdk-trace-base');
    const { AsyncLocalStorageContextManager } = load('@opentelemetry/context-async-hooks');
    const { CompositePropagator, W3CBaggagePropagator, W3CTraceContextPropagator } = load('@opentelemetry/core');
    exporter = new sdk.InMemorySpanExporter();
    api.trace.setGlobalTracerProvider(new sdk.BasicTracerProvider({ spanProcessors: [new sdk.SimpleSpanProcessor(exporter)] }));
    api.context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
    api.propagation.setGlobalPropagator(
      new CompositePropagator({ propagators: [new W3CTraceContextPropagator(), new W3CBaggagePropagator()] }),
    );
  }
  return new BullMQOtel('tests');
}

function viewSpan(span) {
  const { traceId, spanId } = span.spanContext();
  return { name: span.name, traceId, spanId, parentSpanId: span.parentSpanContext?.spanId ?? null, attributes: view(span.attributes) };
}

// ---------------------------------------------------------------------------------------------------------------- workers

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function gateOf(name) {
  if (!gates.has(name)) gates.set(name, { open: false, waiting: [] });
  return gates.get(name);
}

// A behaviour is a table. Its entries act in this order, whatever order they were written in; `then` is another table, done last.
//   log: [line…]   progress: [value…]   updateData: value     told to the job
//   hold: gate     wait for the command `release`             sleep: ms
//   delayed: ms, toWait: true, rateLimit: ms, children: true  leave the job for later, the way BullMQ documents it;
//                                                             children: only when some are left
//   throwTimes: n, message                                    fail while fewer than n attempts were made
//   unrecoverable: message   throw: message                   fail
//   return: value   echo: true   childrenValues: true         the result (default null)
async function behave(behaviour, job, token, worker) {
  for (const line of behaviour.log ?? []) await job.log(line);
  for (const value of behaviour.progress ?? []) await job.updateProgress(value);
  if ('updateData' in behaviour) await job.updateData(behaviour.updateData);
  if ('hold' in behaviour) {
    const gate = gateOf(behaviour.hold);
    if (!gate.open) await new Promise((resolve) => gate.waiting.push(resolve));
  }
  if (behaviour.sleep) await sleep(behaviour.sleep);
  if ('delayed' in behaviour && job.attemptsStarted < 2) {
    await job.moveToDelayed(Date.now() + behaviour.delayed, token);
    throw new bullmq.DelayedError();
  }
  if (behaviour.toWait && job.attemptsStarted < 2) {
    await job.moveToWait(token);
    throw new bullmq.WaitingError();
  }
  if ('rateLimit' in behaviour && job.attemptsStarted < 2) {
    await worker.rateLimit(behaviour.rateLimit);
    throw bullmq.Worker.RateLimitError();
  }
  if (behaviour.children && (await job.moveToWaitingChildren(token))) throw new bullmq.WaitingChildrenError();
  if ('throwTimes' in behaviour && job.attemptsMade < behaviour.throwTimes) throw new Error(behaviour.message ?? 'not yet');
  if ('unrecoverable' in behaviour) throw new bullmq.UnrecoverableError(behaviour.unrecoverable);
  if ('throw' in behaviour) throw new Error(behaviour.throw);
  if (behaviour.then) return behave(behaviour.then, job, token, worker);
  if (behaviour.echo) return job.data;
  if (behaviour.childrenValues) return job.getChildrenValues();
  return 'return' in behaviour ? behaviour.return : null;
}

function processorOf(id, record) {
  return async (job, token) => {
    const { worker, queue, behaviours, otherwise } = workers.get(id);
    if (!record) return behave(behaviours[job.name] ?? otherwise, job, token, worker);
    const run = {
      worker: id, queue, jobId: job.id, name: job.name, data: view(job.data), opts: view(job.opts), attemptsMade: job.attemptsMade,
      attemptsStarted: job.attemptsStarted, token, started: Date.now(), finished: null, returned: null, threw: null,
    };
    runs.push(run);
    notify('run.started', { worker: id, queue, jobId: job.id });
    try {
      run.returned = view(await behave(behaviours[job.name] ?? otherwise, job, token, worker));
      return run.returned;
    } catch (error) {
      run.threw = viewError(error);
      throw error;
    } finally {
      run.finished = Date.now();
      notify('run.finished', { worker: id, queue, jobId: job.id });
    }
  };
}

async function startWorker(request) {
  const id = request.worker ?? `w${(workerCount += 1)}`;
  if (workers.has(id)) throw fault('WorkerExists', `there is a worker ${id}`);
  const opts = { ...(request.opts ?? {}), ...base(request), autorun: false };
  opts.connection.maxRetriesPerRequest = null;
  if (request.traced) opts.telemetry = telemetry();
  if (request.backoffTable) {
    // BullMQ's custom strategy is a function, which JSON has not: milliseconds by attempt, the last one for all further.
    const table = request.backoffTable;
    opts.settings = { ...(opts.settings ?? {}), backoffStrategy: (made) => table[Math.min(made, table.length) - 1] };
  }
  const record = request.record ?? true;
  const worker = watch(new bullmq.Worker(request.queue, processorOf(id, record), opts), `worker ${id}`);
  const queue = request.queue;
  workers.set(id, { worker, queue, behaviours: request.behaviours ?? {}, otherwise: request.default ?? { echo: true } });
  if (record) {
    worker.on('completed', (job, result) => notify('worker.completed', { worker: id, queue, jobId: job.id, result }));
    worker.on('failed', (job, error) => notify('worker.failed', { worker: id, queue, jobId: job?.id, error: viewError(error) }));
    worker.on('stalled', (jobId) => notify('worker.stalled', { worker: id, queue, jobId }));
    worker.on('drained', () => notify('worker.drained', { worker: id, queue }));
  }
  await worker.waitUntilReady();
  worker.run().catch((error) => notify('error', { source: `worker ${id}`, error: viewError(error) }));
  return id;
}

function workerOf({ worker }) {
  if (!workers.has(worker)) throw fault('NoSuchWorker', `no worker ${worker}`);
  return workers.get(worker);
}

// A worker that fetches only when asked to, and runs nothing.
async function manualWorker(request) {
  const key = keyOf(request);
  if (!manual.has(key)) {
    const opts = { ...(request.opts ?? {}), ...base(request), autorun: false };
    opts.connection.maxRetriesPerRequest = null;
    manual.set(key, watch(new bullmq.Worker(request.queue, null, opts), `manual worker ${key}`));
  }
  const worker = manual.get(key);
  await worker.waitUntilReady();
  return worker;
}

function hold(request, job) {
  if (job) held.set(`${keyOf(request)}:${job.id}`, job);
  return job ?? null;
}

// What a finishing call answers when it fetched the next job too: [fields, id, wait of the rate limit, next due time].
async function holdNext(request, answer) {
  if (!Array.isArray(answer)) return { next: null, limitMs: 0, delayUntil: 0 };
  const [fields, id, limitMs, delayUntil] = answer;
  const worker = await manualWorker(request);
  const job = fields ? await worker.nextJobFromJobData(fields, id, request.token) : null;
  return { next: hold(request, job), limitMs: limitMs ?? 0, delayUntil: delayUntil ?? 0 };
}

async function closeAll(force) {
  const doing = [];
  for (const { worker } of workers.values()) doing.push(worker.close(force));
  for (const worker of manual.values()) doing.push(worker.close(force));
  for (const opening of listeners.values()) doing.push(opening.then(({ queueEvents }) => queueEvents.close()));
  for (const thing of [...flows.values(), ...queues.values()]) doing.push(thing.close());
  for (const everything of [workers, manual, listeners, flows, queues, held, gates]) everything.clear();
  // A connection that is gone refuses to be closed; that is no news.
  await Promise.race([Promise.allSettled(doing), sleep(force ? 3000 : 30000)]);
}

// ---------------------------------------------------------------------------------------------------------------- commands

const commands = {
  // {connection: {host, port, db, ...}}: all that ioredis takes
  async init(request) {
    connection = request.connection;
    return { node: process.versions.node, bullmq: load('bullmq/package.json').version, ioredis: load('ioredis/package.json').version };
  },

  // The clock stands still at `now` (ms), for everything in this process: for a process of one's own, that compares. null: it goes again.
  // Timeouts and what Redis lets expire go on as ever.
  clock({ now }) {
    stoppedAt = now ?? null;
    return null;
  },

  // -- producing: {queue, prefix?, ...}
  // to give the Queue options of its own; traced: true for bullmq-otel
  async openQueue(request) {
    await queueOf(request, { ...(request.opts ?? {}), ...(request.traced ? { telemetry: telemetry() } : {}) }).waitUntilReady();
    return null;
  },
  add: (request) => queueOf(request).add(request.name, request.data, optional(request.opts)),
  addBulk: (request) => queueOf(request).addBulk(request.jobs),
  flowAdd: (request) => flowOf(request).add(request.flow, optional(request.opts)),
  flowAddBulk: (request) => flowOf(request).addBulk(request.flows),
  flowCall: (request) => flowOf(request)[request.method](...revive(request.args ?? [])),

  // -- looking
  getJob: (request) => queueOf(request).getJob(request.jobId),
  getState: (request) => queueOf(request).getJobState(request.jobId),
  getJobCounts: (request) => queueOf(request).getJobCounts(...(request.types ?? [])),

  // -- everything else, by its name in BullMQ: {method, args}
  queueCall: (request) => queueOf(request)[request.method](...revive(request.args ?? [])),
  // [[pattern, time zone, ms, how many]…]: the next times of each, one after the other as its schedulers ask for them, up to null (none), or
  // the text of the error
  cron: (request) =>
    request.cases.map(([pattern, tz, at, count]) => {
      const times = [];
      try {
        while (times.length < count && at !== null) {
          at = bullmq.defaultRepeatStrategy(at, { pattern, tz }) ?? null;
          times.push(at);
        }
      } catch (error) {
        return error.message;
      }
      return times;
    }),
  async jobCall(request) {
    const job = await jobOf(request);
    return job[request.method](...revive(request.args ?? []));
  },

  // -- events
  async queueEvents(request) {
    await listenerOf(request);
    return null;
  },
  // what has been seen since `queueEvents`: [{event, args, id}]
  async events(request) {
    const { seen } = await listenerOf(request);
    return seen;
  },
  async waitUntilFinished(request) {
    const { queueEvents } = await listenerOf(request);
    const job = await jobOf(request);
    return job.waitUntilFinished(queueEvents, optional(request.ttl));
  },

  // -- workers: {queue, prefix?, opts?, behaviours?: {job name: behaviour}, default?: behaviour, worker?: id,
  // backoffTable?, record?: false for measuring: no runs, no notifications}
  worker: (request) => startWorker(request),
  behave(request) {
    const entry = workerOf(request);
    if (request.behaviours) entry.behaviours = request.behaviours;
    if (request.default) entry.otherwise = request.default;
    return null;
  },
  workerCall: (request) => workerOf(request).worker[request.method](...revive(request.args ?? [])),
  async closeWorker(request) {
    const { worker } = workerOf(request);
    await worker.close(request.force ?? false);
    workers.delete(request.worker);
    return null;
  },
  release(request) {
    const gate = gateOf(request.gate);
    gate.open = true;
    for (const resolve of gate.waiting.splice(0)) resolve();
    return null;
  },
  // [{worker, queue, jobId, name, data, opts, attemptsMade, attemptsStarted, token, started, finished, returned, threw}]
  runs: ({ queue, jobId }) => runs.filter((run) => (!queue || run.queue === queue) && (!jobId || run.jobId === jobId)),

  // -- a worker by hand: {queue, prefix?, token, ...}
  manualWorker: (request) => manualWorker(request).then(() => null), // {opts}, when the defaults will not do; first, if at all
  async getNextJob(request) {
    const worker = await manualWorker(request);
    return hold(request, await worker.getNextJob(request.token, { block: request.block ?? false }));
  },
  // up to `wanted` jobs with one token, asking Redis whatever this worker remembers of a rate limit. BullMQ 5's getNextJob would fail a
  // job with a deferred failure itself; here, as in 6, whoever asked gets it
  async take(request) {
    const worker = await manualWorker(request);
    const method = worker.getTracedNextJob ? 'getTracedNextJob' : 'getNextJob';
    const taken = [];
    while (taken.length < request.wanted) {
      Object.assign(worker, { limitUntil: 0 });
      const job = hold(request, await worker[method](request.token, { block: false }));
      if (job === null) break;
      taken.push(job);
    }
    return taken;
  },
  // nothing is in hand any more, whatever Redis says
  letGo() {
    held.clear();
    return null;
  },
  async moveToCompleted(request) {
    const answer = await heldJob(request).moveToCompleted(request.value, request.token, request.fetchNext ?? false);
    return holdNext(request, answer);
  },
  async moveToFailed(request) {
    const Kind = request.unrecoverable ? bullmq.UnrecoverableError : Error;
    const error = new Kind(request.message);
    if ('stack' in request) error.stack = request.stack; // a known text instead of places in this file
    const answer = await heldJob(request).moveToFailed(error, request.token, request.fetchNext ?? false);
    return holdNext(request, answer);
  },
  moveToDelayed: (request) => heldJob(request).moveToDelayed(request.timestamp, request.token),
  moveToWait: (request) => heldJob(request).moveToWait(request.token),
  moveToWaitingChildren: (request) => heldJob(request).moveToWaitingChildren(request.token, optional(request.opts)),
  extendLock: (request) => heldJob(request).extendLock(request.token, request.duration),
  heldCall: (request) => heldJob(request)[request.method](...revive(request.args ?? [])),
  async manualCall(request) {
    const worker = await manualWorker(request);
    return worker[request.method](...revive(request.args ?? []));
  },

  // [{name, traceId, spanId, parentSpanId, attributes}] of all that is traced
  spans: () => (exporter ? exporter.getFinishedSpans().map(viewSpan) : []),

  // -- ends
  // as new, but for the connection: between two tests. `force` leaves running jobs where they are.
  async reset(request) {
    await closeAll(request.force ?? true);
    runs = [];
    return null;
  },
  async closeAll(request) {
    await closeAll(request.force ?? false);
    return null;
  },
  async quit() {
    await closeAll(true);
    return null;
  },
};

async function serve(line) {
  let request = {};
  try {
    request = JSON.parse(line);
    if (!Object.hasOwn(commands, request.cmd)) throw fault('NoSuchCommand', `no command ${request.cmd}`);
    const value = view(await commands[request.cmd](request));
    send({ id: request.id, ok: true, value });
  } catch (error) {
    send({ id: request.id ?? null, ok: false, error: viewError(error) });
  }
  // leave when the answer has left, which for a pipe is not always at once
  if (request.cmd === 'quit') process.stdout.write('', () => process.exit(0));
}

process.on('unhandledRejection', (error) => notify('error', { source: 'unhandledRejection', error: viewError(error) }));
process.on('SIGINT', () => {}); // Ctrl-C is for pytest, which will tell us to quit

const lines = readline.createInterface({ input: process.stdin });
lines.on('line', serve);
lines.on('close', () => process.exit(0)); // whoever started us is gone
