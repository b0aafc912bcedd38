// The parent of the flow: a processor in Node, which runs when its children have ended and has their values.
import { Worker } from "bullmq";

const connection = { host: "127.0.0.1", port: Number(process.env.REDIS_PORT ?? 6379) };

const worker = new Worker(
  "albums",
  async (job) => ({ album: job.data.title, images: Object.values(await job.getChildrenValues()).sort() }),
  { connection },
);

process.once("SIGTERM", () => worker.close());
