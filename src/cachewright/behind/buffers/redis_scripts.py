"""The Lua scripts of the buffer in Redis: each reads or changes one partition, and nothing else. See `redis_layout`.

They hold the rules of `base` in the words of the buffer in SQLite, so that the two can be compared.
"""

from __future__ import annotations

from cachewright.behind.buffers.redis_layout import PRELUDE
from cachewright.tiers.redis_scripts import script

__all__ = [
    "ACKNOWLEDGE", "APPEND", "CLAIM", "DISCARD", "FAIL", "HOLD", "NEXT_DUE", "OPEN", "READ", "RECORDS", "RELEASE",
    "RENEW", "REPLAY", "STATS",
]  # fmt: skip


def _script(body: str) -> str:
    return script(PRELUDE + body)


# Whether to write the number of partitions down.
OPEN = _script("""
if ARGV[5] == '1' then call('HSETNX', META, 'parts', ARGV[1]) end
return {'ok', server}
""")

# Delay, overflow, most records, most bytes, most bytes of an empty partition, RETRY_NEWER, whether only to look; then
# key, id, payload, state, codec, flags and size of each.
APPEND = _script("""
local delay, overflow, newer = tonumber(ARGV[5]), ARGV[6] == '1', tonumber(ARGV[10])
local most, most_bytes = tonumber(ARGV[7]), tonumber(ARGV[bytes > 0 and 8 or 9])
local found, fresh, more = {}, 0, 0
for i = 12, #ARGV, 7 do
  local r = load(ARGV[i])
  if r == false then return damaged(ARGV[i]) end
  found[i] = r
  if not r or r[STATE] == HELD then fresh = fresh + 1 end -- held: it has no state that could be replaced
  more = more + tonumber(ARGV[i + 6]) - (r and r[SIZE] or 0)
end
local records = call('ZCARD', DIRTY) + call('ZCARD', DEAD)
if (fresh > 0 and records + fresh > most)
  or (more > 0 and bytes + more > most_bytes and not (overflow and fresh == 0)) then
  return {'full', server, records, bytes, more}
end
if ARGV[11] == '1' then return {'ok', server} end
local reply = {'ok', server}
for i = 12, #ARGV, 7 do
  local key, r, due = ARGV[i], found[i], now + delay
  if not r then
    r = {0, 0, 0, 0, 0, now, 0, due, 0, 0, 0, '', '', false}
  else
    local anew = r[GIVEN_UP] == 1 or r[STATE] == HELD
    if not (anew or r[TOKEN] ~= '') then
      due = math.min(r[DUE], r[TRIES] > 0 and now + math.max(delay, newer) or due)
    end
    if anew then r[FIRST] = now end
    if r[GIVEN_UP] == 1 then r[ERROR] = false end
    if r[SETTLING] == 1 then r[SUSPECT] = 1 end
    r[DUE], r[SETTLING], r[TRIES], r[GIVEN_UP] = due, 0, 0, 0
  end
  r[SEQ], r[ID], r[STATE] = next_sequence(), ARGV[i + 1], tonumber(ARGV[i + 3])
  r[CODEC], r[FLAGS], r[SIZE] = tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5]), tonumber(ARGV[i + 6])
  keep(key, r)
  if r[STATE] == VALUE then call('HSET', PAY, key, ARGV[i + 2]) else call('HDEL', PAY, key) end
  reply[#reply + 1] = r[SEQ]
end
finish()
return reply
""")

# Key, token, life, holder.
HOLD = _script("""
local key, token = ARGV[5], ARGV[6]
local r = load(key)
if r == false then return damaged(key) end
local sequence = next_sequence()
if r then
  finish()
  return {'ok', server, false}
end
start_claim(token, tonumber(ARGV[7]), ARGV[8])
keep(key, {sequence, HELD, 0, 0, 0, now, 0, now, 0, 0, 0, token, '', false})
finish()
return {'ok', server, sequence}
""")

# Keys.
READ = _script("""
local reply = {'ok', server}
for i = 5, #ARGV do
  local r = load(ARGV[i])
  if r == false then return damaged(ARGV[i]) end
  if r and r[STATE] ~= HELD then reply[#reply + 1] = show(ARGV[i], r) end
end
return reply
""")

_RELEASE = """
local function release(token)
  local keys = keys_of(token)
  if #keys > 0 then begin() end
  for _, key in ipairs(keys) do
    local r = load(key)
    if not r then shelve(key, token .. ':' .. key)
    elseif r[TOKEN] ~= token then call('ZREM', TAKEN, token .. ':' .. key)
    elseif r[STATE] == HELD and r[SUSPECT] == 0 then keep(key, nil)
    else
      r[TOKEN] = ''
      keep(key, r)
    end
  end
  if #keys > 0 then
    end_claim(token)
    finish()
  end
end
"""

# Limit, token, life, holder, hurry, which ("any", "free", "orphan", or "look": nothing is claimed), whether keys are
# chosen, how many holders are dead, how many claims got lost; then those, and the keys.
# The reply: holders of claims, keys of damaged records, and records; or, for a look, since when an orphan is due or
# false, and since when the free records are.
CLAIM = _script(
    _RELEASE
    + """
local limit, token, life, me = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]), ARGV[8]
local hurry, which, chosen = ARGV[9] == '1', ARGV[10], ARGV[11] == '1' and {}
local at, gone = 14, {}
for i = 1, tonumber(ARGV[12]) do gone[ARGV[at]] = true at = at + 1 end
for i = 1, tonumber(ARGV[13]) do release(ARGV[at]) at = at + 1 end
local wanted = {}
for i = at, #ARGV do wanted[#wanted + 1] = ARGV[i] chosen[ARGV[i]] = true end

local function is_due(r)
  return r[GIVEN_UP] == 0 and (r[DUE] <= now or (hurry and r[TRIES] == 0 and r[SETTLING] == 0))
end

local over, holders = call('ZRANGEBYSCORE', CLAIMS, '-inf', text(now)), {}
local standing = call('HGETALL', HOLDERS)
for i = 1, #standing, 2 do
  local who = standing[i + 1]:match('^%d+ (.*)$') or ''
  holders[#holders + 1] = who
  if gone[who] then over[#over + 1] = standing[i] end
end

local LOOKED_AT = 512  -- so many claimed records are compared; after a disaster there may be very many
local orphan, looked = nil, 0
for _, old in ipairs(over) do
  if orphan and looked >= LOOKED_AT then break end
  for _, key in ipairs(keys_of(old)) do
    looked = looked + 1
    local r = load(key)
    if not r then shelve(key, old .. ':' .. key)
    elseif is_due(r) and (not chosen or chosen[key]) and (not orphan or r[DUE] < orphan[2][DUE]) then
      orphan = {key, r}
    end
  end
  end_claim(old)
end
if which == 'free' then orphan = nil end

local due = {}
if which ~= 'orphan' and not (orphan and which == 'any') then
  if chosen then
    for _, key in ipairs(wanted) do
      local r = load(key)
      if r and r[TOKEN] == '' and is_due(r) then due[#due + 1] = {key, r[DUE], r} end
      if r == false then shelve(key) end
    end
  else
    for _, index in ipairs({FRESH, LATER}) do
      local most = hurry and index == FRESH and '+inf' or text(now)
      local found = call('ZRANGEBYSCORE', index, '-inf', most, 'WITHSCORES', 'LIMIT', 0, limit)
      for i = 1, #found, 2 do due[#due + 1] = {found[i], tonumber(found[i + 1])} end
    end
  end
  table.sort(due, function(a, b) return a[2] < b[2] or (a[2] == b[2] and a[1] < b[1]) end)
end

if which == 'look' then
  local times = {}
  for i = 1, math.min(#due, limit) do times[i] = due[i][2] end
  return {'ok', server, holders, shelved, orphan and orphan[2][DUE] or false, times}
end

local records = {}
local function take(key, r)
  if #records == 0 then
    begin()
    start_claim(token, life, me)
  end
  r[TOKEN] = token
  keep(key, r)
  records[#records + 1] = show(key, r)
end
if orphan then
  local key, r = unpack(orphan)
  local _, who = holder_of(r[TOKEN])
  r[ERROR] = 'its flusher ' .. who .. ' died or paused while saving it'
  r[SUSPECT], r[SETTLING], r[TRIES] = 1, 0, r[TRIES] + 1
  take(key, r)
end
for _, one in ipairs(due) do
  if #records >= limit then break end
  local r = one[3] or load(one[1])
  if r then take(one[1], r) else shelve(one[1]) end
end
if #records > 0 then finish() end
return {'ok', server, holders, shelved, records}
"""
)

# Token, life.
RENEW = _script("""
local token = ARGV[5]
if call('ZSCORE', CLAIMS, token) then
  begin()
  call('ZADD', CLAIMS, text(now + ARGV[6]), token)
end
return {'ok', server, call('ZLEXCOUNT', TAKEN, '[' .. token .. ':', '(' .. token .. ';')}
""")

# Token.
RELEASE = _script(
    _RELEASE
    + """
release(ARGV[5])
return {'ok', server}
"""
)

# A save ended whose claim was taken over. What the reply says of it: 2, or 3 where the newest state is still there, to be
# saved after it; 0 where nobody knows, since this call was sent before and may have ended the claim itself.
_LOST = """
local token, settle = ARGV[5], tonumber(ARGV[6])
local function lost(key, r, unknown)
  if again or r == false then return 0 end
  if not r then return 2 end
  if settle > 0 and (r[TOKEN] ~= '' or unknown) then -- what nobody is at yet is saved after this one, which has ended
    r[SUSPECT] = 1
    keep(key, r)
  end
  return (r[STATE] == HELD or r[GIVEN_UP] == 1) and 2 or 3
end
"""

# Token, settle; then key, sequence and unsure of each. The reply: how many were removed, and what `lost` says of each.
ACKNOWLEDGE = _script(
    _LOST
    + """
local claimed, removed, reply = holder_of(token), 0, {'ok', server, 0}
begin()
for i = 7, #ARGV, 3 do
  local key, unsure = ARGV[i], ARGV[i + 2] == '1'
  local r, word = load(key), 0
  if r == nil and again then removed = removed + 1 end
  if r and r[TOKEN] == token then
    local suspect = r[SUSPECT] == 1 or unsure
    r[TOKEN] = ''
    if r[SEQ] ~= tonumber(ARGV[i + 1]) then
      r[SUSPECT], r[FIRST] = suspect and 1 or 0, math.max(r[FIRST], claimed)
    elseif suspect and settle > 0 then
      r[SUSPECT], r[SETTLING], r[TRIES], r[DUE] = 0, 1, unsure and 1 or 0, now + settle
    else
      r, removed = nil, removed + 1
    end
    keep(key, r)
  else
    word = lost(key, r, unsure)
  end
  reply[#reply + 1] = word
end
finish()
reply[3] = removed
return reply
"""
)

# Token, settle, RETRY_NEWER; then key, sequence, error, pause, dead, unknown and counts of each.
# The reply: 1 for each that is a dead letter now, or what `lost` says of it.
FAIL = _script(
    _LOST
    + """
local newer = tonumber(ARGV[7])
local reply = {'ok', server}
begin()
for i = 8, #ARGV, 7 do
  local key, pause, died = ARGV[i], now + ARGV[i + 3], 0
  local r = load(key)
  local same = r and r[SEQ] == tonumber(ARGV[i + 1])
  if r and r[TOKEN] == token then
    local suspect = r[SUSPECT] == 1 or r[SETTLING] == 1 or (ARGV[i + 5] == '1' and settle > 0)
    if r[STATE] == HELD and not suspect then
      r = nil
    else
      r[TRIES] = same and r[TRIES] + ARGV[i + 6] or 0
      if r[STATE] == HELD then r[DUE] = now + settle
      elseif same then
        r[DUE] = pause
        if ARGV[i + 4] == '1' then r[GIVEN_UP], died = 1, 1 end
      else r[DUE] = math.max(r[DUE], math.min(pause, now + newer)) end
      r[TOKEN], r[ERROR], r[SUSPECT], r[SETTLING] = '', ARGV[i + 2], suspect and 1 or 0, 0
    end
    keep(key, r)
  elseif again and same and r[GIVEN_UP] == 1 and ARGV[i + 4] == '1' then
    died = 1
  elseif ARGV[i + 5] == '1' then
    died = lost(key, r, true)
  end
  reply[#reply + 1] = died
end
finish()
return reply
"""
)

# Whether in a hurry. The reply: when, or false; and whether at once.
NEXT_DUE = _script("""
local bad = call('ZCARD', BAD) > 0 and mend()
if bad then return damaged(bad) end
local best = false
local function at(time) if not best or time < best then best = time end end
for _, index in ipairs({FRESH, LATER}) do
  local first = call('ZRANGE', index, 0, 0, 'WITHSCORES')
  if first[2] then at(tonumber(first[2])) end
end
local claims = call('ZRANGE', CLAIMS, 0, -1, 'WITHSCORES')
for i = 1, #claims, 2 do
  local deadline, soonest = tonumber(claims[i + 1]), nil
  if best and best <= deadline then break end
  for _, key in ipairs(keys_of(claims[i])) do
    local r = load(key)
    if r and (not soonest or r[DUE] < soonest) then soonest = r[DUE] end
    if soonest and soonest <= deadline then break end
  end
  if soonest then at(math.max(deadline, soonest)) end
end
return {'ok', server, best, ARGV[5] == '1' and call('ZCARD', FRESH) > 0 and 1 or 0}
""")

STATS = _script("""
local bad = call('ZCARD', BAD) > 0 and mend()
if bad then return damaged(bad) end
local oldest = call('ZRANGE', DIRTY, 0, 0, 'WITHSCORES')[2]
return {'ok', server, call('ZCARD', DIRTY), settling, call('ZCARD', DEAD), bytes, oldest and tonumber(oldest) or false}
""")

# Limit, whether dead ones, whether only since when they are dirty.
RECORDS = _script("""
local reply, index = {'ok', server}, ARGV[6] == '1' and DEAD or DIRTY
if ARGV[7] == '1' then
  local found = call('ZRANGE', index, 0, ARGV[5] - 1, 'WITHSCORES')
  for i = 2, #found, 2 do reply[#reply + 1] = tonumber(found[i]) end
  return reply
end
for _, key in ipairs(call('ZRANGE', index, 0, ARGV[5] - 1)) do
  local r = load(key)
  if not r then return damaged(key) end
  reply[#reply + 1] = show(key, r)
end
return reply
""")

# Key.
REPLAY = _script("""
local r = load(ARGV[5])
if r == false then return damaged(ARGV[5]) end
if not r or r[GIVEN_UP] == 0 then return {'ok', server, 0} end
r[GIVEN_UP], r[TRIES], r[DUE], r[FIRST] = 0, 0, now, now
begin()
keep(ARGV[5], r)
finish()
return {'ok', server, 1}
""")

# Key, whether only a dead letter.
DISCARD = _script("""
local r = load(ARGV[5])
if r == false then return damaged(ARGV[5]) end
if not r or r[TOKEN] ~= '' or r[STATE] == HELD or (ARGV[6] == '1' and r[GIVEN_UP] == 0) then return {'ok', server} end
local shown = show(ARGV[5], r)
begin()
keep(ARGV[5], nil)
finish()
return {'ok', server, shown}
""")
