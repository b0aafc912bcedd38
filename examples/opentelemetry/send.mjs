// Adds a job within a span. BullMQ's own instrumentation puts the trace into the job, and the Celery task goes on in it.
import { context, propagation, trace } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { BasicTracerProvider } from "@opentelemetry/sdk-trace-base";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import { Queue, QueueEvents } from "bullmq";
import { BullMQOtel } from "bullmq-otel";

context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
propagation.setGlobalPropagator(new W3CTraceContextPropagator());
trace.setGlobalTracerProvider(new BasicTracerProvider());

const connection = { host: "127.0.0.1", port: Number(process.env.REDIS_PORT ?? 6379) };
const queue = new Queue("reports", { connection, telemetry: new BullMQOtel("shop") });
const events = new QueueEvents("reports", { connection });

await trace.getTracer("shop").startActiveSpan("order", async (span) => {
  const job = await queue.add("report.build", { rows: 3 });
  const inCelery = await job.waitUntilFinished(events);
  console.log("one trace:", inCelery === span.spanContext().traceId);
  span.end();
});

await Promise.all([events.close(), queue.close()]);
