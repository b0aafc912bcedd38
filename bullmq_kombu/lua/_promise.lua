-- Fragment: the promise to run a job at most once. Needs _queue.

-- The deferred failure that makes an early acknowledgement at-most-once.
local LOST = 'worker lost after acknowledging early'

-- From now on at most once: whoever takes this job after a stall fails it.
local function commit(q, id, token)
  local held = call('GET', q.base .. id .. ':lock')
  if held ~= token then
    return held and -6 or -2
  elseif call('EXISTS', q.base .. id) == 0 then
    return -1
  end
  call('HSETNX', q.base .. id, 'defa', LOST)
  return 0
end

-- Takes back what `commit` wrote: the job is no longer in the hands of somebody who may lose it. Other deferred failures
-- (a failed child, too many stalls) stay.
local function take_back_promise(key)
  if call('HGET', key, 'defa') == LOST then
    call('HDEL', key, 'defa')
  end
end
