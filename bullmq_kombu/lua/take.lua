--[[
take: activates up to `wanted` waiting jobs of several queues, in the order of KEYS.
Uses: _queue _take
Rare: promote fail_ghost
KEYS: one "prefix:queue:" for each queue
ARGV: 1 now, ms   2 wanted   3 token of these deliveries   4 lock, ms   5 worker name, ''   6 limiter max, ''
  7 limiter duration in ms, ''
Returns: {jobs, queues}. jobs: number of the queue, id, hash (flat, as it was before), and so on; queues: for each one asked
  its number, for how many ms a rate limit closes it (0: open), when its next delayed job is due (ms, 0: none known)
Events: active; waiting for what became due; failed for an id whose hash is gone: it is never activated
]]
local worker = {
  token = ARGV[3], lock_ms = ARGV[4], name = ARGV[5], max = tonumber(ARGV[6]), window = tonumber(ARGV[7]),
}
local jobs, queues = take_from(KEYS, ARGV[1], tonumber(ARGV[2]), worker, #KEYS, {})
return { jobs, queues }
