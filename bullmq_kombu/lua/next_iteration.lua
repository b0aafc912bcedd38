--[[
next_iteration: the iteration of a scheduler that was taken makes the next one; one that is not the current one makes none.
Uses: _queue _parents _add _schedule
KEYS: "prefix:queue:"
ARGV: 1 now, ms   2 scheduler id   3 id of the job that was taken   4 when a pattern is due next, ms, '' with `every`
  5 options of the next iteration, JSON
Returns: id of the next iteration, or '' where none was made
Events: added, waiting or delayed; duplicated where the next one is there already
]]
local q, now, scheduler, producer = open_queue(KEYS[1]), tonumber(ARGV[1]), ARGV[2], ARGV[3]
local key, opts = q.base .. 'repeat:' .. scheduler, cjson.decode(ARGV[5])
local current = tonumber(call('ZSCORE', q.base .. 'repeat', scheduler) or nil)
if not current or producer ~= iteration_id(scheduler, current) then
  return ''
end
local known = call('HMGET', key, 'name', 'data', 'every', 'offset', 'ic')
local taken = call('HMGET', q.base .. producer, 'name', 'data')
local due, every = tonumber(ARGV[4]), tonumber(known[3] or nil) or opts['repeat'].every
if not due and every then
  due = slot_after(current, now, every, tonumber(known[4] or nil) or 0)
end
if not due then
  return ''
end
local data = known[2] or '{}'
if not known[2] and not known[5] and taken[2] then
  -- Made by BullMQ 5 as a repeatable job, which keeps its data in the jobs alone.
  data = taken[2]
  call('HSET', key, 'data', data)
end
local id = iteration_id(scheduler, due)
if call('EXISTS', q.base .. id) == 1 then
  emit_trimming(q, 'duplicated', 'jobId', id)
  return id
end
call('ZADD', q.base .. 'repeat', due, scheduler)
call('HINCRBY', key, 'ic', 1)
add_iteration(q, scheduler, due, known[1] or taken[1] or '', data, opts, now)
return id
