--[[
upsert_scheduler: makes a scheduler, or changes one, and stores its next iteration in the place of the one that waits.
Uses: _queue _parents _add _schedule
KEYS: "prefix:queue:"
ARGV: 1 now, ms   2 scheduler id   3 when a pattern is due next, ms, '' with `every`   4 JSON of name, every, pattern, tz,
  limit, startDate, endDate, offset (ms)   5 data of each job, JSON   6 the template's options, JSON
  7 options of the iteration, JSON
Returns: {id of the next iteration, its delay in ms}, or a code
Codes: -10 the iteration is there already, -11 it and those after it are
Events: added, waiting or delayed
]]
local q, now, scheduler = open_queue(KEYS[1]), tonumber(ARGV[1]), ARGV[2]
local given, opts = cjson.decode(ARGV[4]), cjson.decode(ARGV[7])
local key, every = q.base .. 'repeat:' .. scheduler, given.every
local known = call('HMGET', key, 'every', 'offset', 'ic')
local previous = tonumber(call('ZSCORE', q.base .. 'repeat', scheduler) or nil)
local is_same = every ~= nil and tonumber(known[1] or nil) == every
local offset = given.offset or tonumber(known[2] or nil)

-- The iteration that waits makes room; one that runs goes on.
local function withdraw(id)
  local waits = call('ZREM', q.base .. 'delayed', id) + call('ZREM', q.base .. 'prioritized', id)
    + call('LREM', q.base .. 'wait', 0, id) + call('LREM', q.base .. 'paused', 0, id)
  if waits > 0 then
    remove_hard(q.base, id)
  end
  return waits > 0
end

local withdrawn = previous and withdraw(iteration_id(scheduler, previous))
local due = tonumber(ARGV[3])
if every then
  if is_same and previous then
    due = withdrawn and previous or slot_after(previous, now, every, offset or 0)
  elseif given.startDate then
    due = math.max(given.startDate, now)
  elseif given.offset and given.offset > 0 then
    due = next_slot(now, every, given.offset)
  else
    due = now
  end
  offset = offset or offset_in(due, every)
end
offset = offset or 0

if withdrawn and not every and call('EXISTS', q.base .. iteration_id(scheduler, due)) == 1 then
  -- The iteration of that time was done early: what waited was the one after it, and keeps its time.
  due = previous
  opts.prevMillis = due
end

local tries = every and SLOTS or 1
while call('EXISTS', q.base .. iteration_id(scheduler, due)) == 1 do
  tries = tries - 1
  if tries == 0 then
    return every and -11 or -10
  end
  due = due + every
end

call('ZADD', q.base .. 'repeat', due, scheduler)
call('DEL', key)
call('HSET', key, 'name', given.name, 'ic', known[3] or 1, 'offset', offset)
for _, field in ipairs({ 'every', 'pattern', 'tz', 'limit', 'startDate', 'endDate' }) do
  if given[field] then
    call('HSET', key, field, given[field])
  end
end
if ARGV[5] ~= '{}' then
  call('HSET', key, 'data', ARGV[5])
end
if ARGV[6] ~= '{}' then
  call('HSET', key, 'opts', ARGV[6])
end
return { add_iteration(q, scheduler, due, given.name, ARGV[5], opts, now) }
