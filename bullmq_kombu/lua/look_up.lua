--[[
look_up: what is known of tasks: what `record` stored, and the job of that id in one of the queues that Celery knows.
KEYS: "prefix::kombu:"
ARGV: 1 "1" to tell also where the event streams of the unfinished end, then for each task: task id, job id ('' for a task
  id that is no job's), the queue it was last seen in ('' for unknown, ':' before it where it can be in no other)
Returns: {tasks, ends}. tasks: for each status, what was stored ('' and '' for nothing), then, where that is not final and there
  is a job: queue, state (completed, failed, active with Node, taken by one of ours, or waiting), and of its hash
  name, data, returnvalue, failedReason, stacktrace, atm, progress, pb, finishedOn. ends: queue, id of the last event, and so
  on: waiting for events after those misses nothing
]]
local base = KEYS[1]
local prefix = string.sub(base, 1, -string.len(':kombu:') - 1)
local FINAL = { SUCCESS = true, FAILURE = true, REVOKED = true, FORGOTTEN = true }
-- How the tokens of our own workers begin (leases.py).
local OURS = 'kombu-'
-- How many queues are asked at once.
local ASKED = 100
local queues

local function known_queues()
  if not queues then
    queues = redis.call('SMEMBERS', base .. 'queues')
  end
  return queues
end

-- The fields of a job with its queue and state before them, or nil where the queue has none of this id, or a key of its own. A
-- job that has ended silently is none: its task has gone on as another job, or has said itself all there is to say.
local function job_in(queue, id)
  local jobs = prefix .. queue .. ':'
  local fields = redis.pcall('HMGET', jobs .. id, 'name', 'data', 'returnvalue', 'failedReason', 'stacktrace', 'atm',
    'progress', 'pb', 'finishedOn', 'silent')
  if fields.err or not fields[1] or (fields[9] and fields[9] == fields[10]) then
    return nil
  end
  local state = 'waiting'
  if fields[9] then
    state = redis.call('ZSCORE', jobs .. 'completed', id) and 'completed' or 'failed'
  else
    local token = redis.call('GET', jobs .. id .. ':lock')
    if token then
      state = string.sub(token, 1, string.len(OURS)) == OURS and 'taken' or 'active'
    end
  end
  return { queue, state, unpack(fields, 1, 9) }
end

-- The job in any of these queues; most have nothing of this id, and are asked together.
local function job_in_any(places, id)
  for from = 1, #places, ASKED do
    local last = math.min(from + ASKED - 1, #places)
    local keys = {}
    for at = from, last do
      keys[#keys + 1] = prefix .. places[at] .. ':' .. id
    end
    if redis.call('EXISTS', unpack(keys)) > 0 then
      for at = from, last do
        local found = job_in(places[at], id)
        if found then
          return found
        end
      end
    end
  end
end

-- The job of a task whose job has another id.
local function find_by_alias(task)
  local queue, id = string.match(redis.call('GET', base .. 'job:' .. task) or '', '^([^:]+):(.+)$')
  return queue and job_in(queue, id)
end

-- The job, or nil and the queues where it may yet come.
local function find(task, id, hint)
  local found
  if string.sub(hint, 1, 1) == ':' then
    -- "mail:17" names a job; but a task may be called so too.
    local queue = string.sub(hint, 2)
    return find_by_alias(task) or job_in(queue, id), { queue }
  end
  if hint ~= '' then
    found = job_in(hint, id)
  end
  if not found and id ~= '' then
    found = job_in_any(known_queues(), id)
  end
  found = found or find_by_alias(task)
  return found, found and {} or known_queues()
end

local tasks, watched = {}, {}
for at = 2, #ARGV, 3 do
  local stored = redis.call('HMGET', base .. 'result:' .. ARGV[at], 'status', 'meta')
  local about = { stored[1] or '', stored[2] or '' }
  if not FINAL[stored[1]] then
    local found, possible = find(ARGV[at], ARGV[at + 1], ARGV[at + 2])
    if found then
      for place = 1, 11 do
        about[place + 2] = found[place]
      end
    end
    if not found then
      for _, queue in ipairs(possible) do
        watched[queue] = true
      end
    elseif found[2] ~= 'completed' and found[2] ~= 'failed' then
      watched[found[1]] = true
    end
  end
  tasks[#tasks + 1] = about
end

local ends = {}
if ARGV[1] == '1' then
  for queue in pairs(watched) do
    local last = redis.call('XREVRANGE', prefix .. queue .. ':events', '+', '-', 'COUNT', 1)[1]
    ends[#ends + 1] = queue
    ends[#ends + 1] = last and last[1] or '0-0'
  end
end
return { tasks, ends }
