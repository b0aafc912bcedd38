// Adds two jobs that are tasks of tasks.py, and waits for how they end.
import { Queue, QueueEvents } from "bullmq";

const connection = { host: "127.0.0.1", port: Number(process.env.REDIS_PORT ?? 6379) };
const queue = new Queue("invoices", { connection });
const events = new QueueEvents("invoices", { connection });

// The job's name is the task's name, the data are its keyword arguments.
const lines = [{ price: 12.5, pieces: 2 }, { price: 3, pieces: 5 }];
const sum = await queue.add("invoice.total", { lines, vat: 0.2 });
console.log("total:", await sum.waitUntilFinished(events));

// Attempts and back-off are kept by Celery's worker as they would be by Node's.
const posting = await queue.add("invoice.post", { number: "2026-17" }, { attempts: 3, backoff: { type: "exponential", delay: 100 } });
try {
  await posting.waitUntilFinished(events);
} catch (error) {
  const { attemptsMade } = await queue.getJob(posting.id);
  console.log(`failed after ${attemptsMade} attempts:`, error.message);
}

await Promise.all([events.close(), queue.close()]);
