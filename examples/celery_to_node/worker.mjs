// A BullMQ worker as any other. It knows nothing of Celery.
import { Worker } from "bullmq";

const connection = { host: "127.0.0.1", port: Number(process.env.REDIS_PORT ?? 6379) };

const worker = new Worker(
  "mail",
  async (job) => {
    if (job.name !== "mail.send") throw new Error(`nobody taught me ${job.name}`);
    console.log(`to ${job.data.to}: ${job.data.subject}`);
    return { sent: job.data.to };
  },
  { connection },
);

process.once("SIGTERM", () => worker.close());
