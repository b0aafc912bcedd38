--[[
add: stores jobs, all or none of them seen by anybody in between.
Uses: _queue _parents _add
Rare: add_unusual release_parent_if_free refused_flow
KEYS: one "prefix:queue:" for each queue involved
ARGV: now in ms, then for each job
  1 number of its queue in KEYS   2 id, '' for the next number   3 name   4 data, JSON   5 opts, JSON
  6 timestamp, ms   7 delay, ms   8 priority   9 the celery field, '' for none
  10 '' or `unique`, or JSON of what few jobs have:
     lifo          before the others of the list
     parentKey, parent   full key of the parent, and the JSON kept of it
     rjk           the scheduler that made it
     de            deduplication: id, ttl, extend, replace, reschedule, keepLastIfActive
     children      true: it waits for children that follow
     in_flow       true: parents are released when the whole flow is stored, and where a job of it is refused none is stored
     unique        true: a finished job of this id is replaced, any other is no reason to drop this one, unless it was made
                   of the very same message: then it stands for it
     carried       true, with `unique`: the same message may have another timestamp
Returns: for each job its id, or that of the job which stands for it, or a code; '' for the other jobs of a refused flow
Codes: -5 parent missing, -7 the job has another living parent, 0 with `unique`: the id is taken by a job not finished
Events: added, then waiting, delayed or waiting-children; duplicated, deduplicated, removed
]]
local EACH = 10
local now = tonumber(ARGV[1])
local opened, answers, parents = {}, {}, {}

local function job_at(at)
  local number, more = tonumber(ARGV[at]), ARGV[at + 9]
  local q = opened[number] or open_queue(KEYS[number])
  opened[number] = q
  return q, {
    id = ARGV[at + 1], name = ARGV[at + 2], data = ARGV[at + 3], opts = ARGV[at + 4], timestamp = ARGV[at + 5],
    delay = ARGV[at + 6], priority = ARGV[at + 7], celery = ARGV[at + 8],
    more = more == '' and NO_MORE or more == 'unique' and UNIQUE or cjson.decode(more),
  }
end

-- The code with which `add` would refuse a job of a flow, before anything is stored. `coming` has the keys of the flow's own
-- jobs.
local function objection(q, job, coming)
  local more, key = job.more, q.base .. job.id
  if more.parentKey and not coming[more.parentKey] and call('EXISTS', more.parentKey) == 0 then
    return -5
  elseif call('EXISTS', key) == 1 then
    if more.unique then
      return not is_same_message(key, job) and not call('ZSCORE', q.base .. 'completed', job.id)
        and not call('ZSCORE', q.base .. 'failed', job.id) and 0
    end
    local current = more.parentKey and call('HGET', key, 'parentKey')
    return current and current ~= more.parentKey and call('EXISTS', current) == 1 and -7
  end
end

-- Whether the call, which is one flow, stores nothing; then `answers` says why.
local function refused_flow()
  local coming, refused = {}, false
  for at = 2, #ARGV, EACH do
    local q, job = job_at(at)
    local code = objection(q, job, coming)
    answers[#answers + 1] = code or ''
    refused = refused or code
    coming[q.base .. job.id] = true
  end
  return refused
end

-- The first job of a flow says that it is one; other calls, which are many, pay nothing for it.
if #ARGV > EACH and string.find(ARGV[EACH + 1], '"in_flow"', 1, true) and refused_flow() then
  return answers
end
answers = {}
for at = 2, #ARGV, EACH do
  local q, job = job_at(at)
  local answer = add(q, job, now)
  answers[#answers + 1] = answer
  if job.more.children then
    parents[#parents + 1] = q.base .. answer
  end
end
for _, key in ipairs(parents) do
  release_parent_if_free(key, now)
end
return answers
