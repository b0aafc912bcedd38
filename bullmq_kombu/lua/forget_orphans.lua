--[[
forget_orphans: deletes what is left of jobs that no state of the queue has. The queue's own keys, which are no jobs, are left
alone.
Uses: _queue _parents _state
KEYS: "prefix:queue:"
ARGV: ids, as they follow the base in a key
Returns: how many jobs were forgotten
]]
local base, forgotten = KEYS[1], 0
-- A job's hash has a name and a time. Of a job whose hash is gone its lists and sets may be left, under an id that is no
-- key of the queue's own.
local OWN = {
  id = true, meta = true, wait = true, paused = true, active = true, prioritized = true, delayed = true, completed = true,
  failed = true, pc = true, marker = true, events = true, stalled = true, limiter = true, ['stalled-check'] = true,
  ['waiting-children'] = true, ['repeat'] = true, delay = true, priority = true, metrics = true, de = true, dn = true,
}

local function is_job(id)
  local key = base .. id
  if OWN[id] or OWN[string.match(id, '^([^:]*)')] and not string.match(id, '^repeat:.+:%d+$') then
    return false
  end
  local kind = call('TYPE', key).ok
  if kind == 'hash' then
    return call('HEXISTS', key, 'name') == 1 and call('HEXISTS', key, 'timestamp') == 1
  end
  return kind == 'none' and call('EXISTS', key .. ':logs', key .. ':dependencies', key .. ':processed', key .. ':failed',
    key .. ':unsuccessful') > 0
end

for _, id in ipairs(ARGV) do
  if is_job(id) and call('EXISTS', base .. id .. ':lock') == 0 and not place_of(base, id) then
    delete_job_keys(base .. id)
    forgotten = forgotten + 1
  end
end
return forgotten
