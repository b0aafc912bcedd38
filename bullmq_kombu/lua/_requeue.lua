-- Fragment: a finished job begins anew. Needs _queue, _parents.

local PROPERTY = { completed = 'returnvalue', failed = 'failedReason' }

-- Its parent waits for it again, and no longer has what it knew of its end.
local function wait_for_again(key)
  local parent_key = call('HGET', key, 'parentKey')
  if not parent_key or parent_key == '' or call('EXISTS', parent_key) == 0 then
    return
  end
  if call('HDEL', parent_key .. ':processed', key) + call('HDEL', parent_key .. ':failed', key)
    + call('ZREM', parent_key .. ':unsuccessful', key) > 0 then
    call('SADD', parent_key .. ':dependencies', key)
  end
end

-- Forgets how the job ended; the caller has taken it out of `state` and puts it where it waits.
local function forget_end(q, id, state)
  local key = q.base .. id
  call('HDEL', key, 'finishedOn', 'processedOn', PROPERTY[state])
  wait_for_again(key)
end
