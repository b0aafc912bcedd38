// bull-board in Express, and a Celery worker beside it: one command starts both, and ends both.
import { spawn } from "node:child_process";
import { createBullBoard } from "@bull-board/api";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import { ExpressAdapter } from "@bull-board/express";
import { Queue } from "bullmq";
import express from "express";

const connection = { host: "127.0.0.1", port: Number(process.env.REDIS_PORT ?? 6379) };
const port = Number(process.env.PORT ?? 3000);

// The board is told the names of the queues; that Celery fills and empties them makes no difference to it.
const queues = ["reports", "thumbnails"].map((name) => new Queue(name, { connection }));
const serverAdapter = new ExpressAdapter();
createBullBoard({ queues: queues.map((queue) => new BullMQAdapter(queue)), serverAdapter });

const app = express();
app.use("/", serverAdapter.getRouter());
const http = app.listen(port, "127.0.0.1", () => console.log(`bull-board: http://127.0.0.1:${port}/`));

const worker = spawn("celery", ["-A", "tasks", "worker", "--queues", "reports", "--concurrency", "2"], { stdio: "inherit" });

for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, () => worker.kill("SIGTERM"));
}
worker.once("error", (error) => console.error(`the worker does not start: ${error.message}`));
worker.once("close", async (code) => {
  http.close();
  http.closeAllConnections();
  await Promise.all(queues.map((queue) => queue.close()));
  process.exitCode = code ?? 1;
});
