-- Fragment: job schedulers. Needs _queue, _parents, _add.
-- A scheduler is the hash `repeat:<id>`; its score in `repeat` is when its current iteration, the job `repeat:<id>:<ms>`, is due.

local SLOTS = 32 -- how many places that are taken are passed over

local function iteration_id(scheduler, ms)
  return string.format('repeat:%s:%.0f', scheduler, ms)
end

-- The multiple of `every`, shifted by `offset`, that comes after `now`.
local function next_slot(now, every, offset)
  local slot = math.floor(now / every) * every + offset
  return slot > now and slot or slot + every
end

-- When an `every` scheduler is due after `previous`: one period later, or, where that has passed, in the next slot.
local function slot_after(previous, now, every, offset)
  local due = previous + every
  return due < now and next_slot(now, every, offset) or due
end

local function offset_in(due, every)
  return due - math.floor(due / every) * every
end

-- Stores the iteration due at `due` and puts it where it belongs. `opts` are the options of the job, but for what only now is
-- known.
local function add_iteration(q, scheduler, due, name, data, opts, now)
  local id = iteration_id(scheduler, due)
  local delay = math.max(0, due - now)
  opts.jobId, opts.delay, opts.timestamp, opts.repeatJobKey = id, delay, now, scheduler
  call('INCR', q.base .. 'id')
  local job = {
    name = name, data = data, opts = cjson.encode(opts), timestamp = now, delay = delay, priority = opts.priority or 0,
    celery = '', more = { rjk = scheduler, lifo = opts.lifo },
  }
  store(q, id, job)
  place(q, id, job)
  return id, delay
end
