/**
 * Frames of wordings to tune on alone: `[a|b]` is a choice, and every choice of a frame is a wording. All that a model from random
 * weights knows of language are its lines, so a pronoun has to be met beside many words before it counts beside a new one.
 * phrasings.ts leaves out whatever is held out, of which nothing here knows.
 */
import type { Blanks, Language } from './wordings'

export type Frames = Readonly<Record<Language, readonly string[]>>

/** Every wording of the frames. */
export function wordingsOf(frames: readonly string[]): string[] {
  const choose = (frame: string): string[] => {
    const choice = /\[([^\]]*)\]/.exec(frame)
    return choice ? choice[1]!.split('|').flatMap((text) => choose(frame.replace(choice[0], text))) : [frame]
  }
  return frames.flatMap(choose)
}

/** The one who is asked about, and the other one; each line is a way to say it. */
export const modelPersons: Record<Language, readonly Blanks[]> = {
  zh: ['你', '您'].map((p) => ({ p, q: '我' })),
  en: [
    {
      be: 'are you',
      is: 'you are',
      sub: 'you',
      pos: 'your',
      obj: 'you',
      self: 'yourself',
      qbe: 'am I',
      qis: 'I am',
      qsub: 'I',
      q: 'me',
    },
  ],
  ja: ['あなた', '君', '貴方'].map((p) => ({ p, q: '私' })),
  ko: [
    { p: '너는', pos: '네', obj: '너를', is: '네가', q: '나와' },
    { p: '넌', pos: '너의', obj: '널', is: '네가', q: '나와' },
    { p: '당신은', pos: '당신의', obj: '당신을', is: '당신이', q: '저와' },
  ],
}
export const userPersons: Record<Language, readonly Blanks[]> = {
  zh: ['你', '您'].map((q) => ({ p: '我', q })),
  en: [
    {
      be: 'am I',
      is: 'I am',
      sub: 'I',
      pos: 'my',
      obj: 'me',
      self: 'me',
      qbe: 'are you',
      qis: 'you are',
      qsub: 'you',
      q: 'you',
    },
  ],
  ja: ['私', '僕', '俺'].map((p) => ({ p, q: 'あなた' })),
  ko: [
    { p: '나는', pos: '내', obj: '나를', is: '내가', q: '너와' },
    { p: '난', pos: '나의', obj: '날', is: '내가', q: '너와' },
    { p: '저는', pos: '저의', obj: '저를', is: '제가', q: '당신과' },
  ],
}

const zhName = '[名字|姓名|大名|本名|真名|全名|名號|稱呼|稱號|外號|暱稱|代號|身份|身分|真實身份|角色|來歷|頭銜]'
const zhWho = '[是誰|叫什麼|是什麼人|叫什麼名字|到底是誰|究竟叫什麼|是哪位]'
const zhTalk = '[說話|聊天|講話|對話|交談|互動|溝通|談話|閒聊|通話|討論|打字|聊|傳訊息]'
const zhHow = '[怎麼|該怎麼|要怎麼|如何|該如何|要如何|應該怎麼|可以怎麼|大家怎麼|別人怎麼|以後怎麼]'
const zhKnow = '[知道|曉得|清楚|明白|記得|還記得|說得出|猜得到|看得出|能說出|是否知道|知不知道|記不記得]'
const zhGuess = '[|請|先|試著|你][猜|猜猜|猜一猜|猜一下|猜猜看|判斷|判斷一下|分辨|推測]'
const enName = '[name|full name|real name|first name|nickname|title|role|identity|job title|handle|official name]'
const enTell =
  '[tell me|say|state|explain|reveal|describe|write down|remind me|let me know|clarify|spell out|please tell me]'
const enTalk =
  '[talking to|talking with|speaking to|speaking with|chatting with|chatting to|texting|texting with|writing to|messaging|dealing with|conversing with|interacting with|communicating with|addressing|facing|working with]'

/** The one who is asked about is the model or the user. */
export const mirroredFrames: Frames = {
  zh: [
    '{p}[|到底|究竟|其實|真的|又|自己|本人|現在|實際上|基本上|平常|本來|說到底|原來|今天|終究][是誰|是什麼人|是哪位|是哪一位|是何人|是怎樣的人|是什麼樣的人|是誰來著|是哪號人物]',
    '{p}[|到底|究竟|其實|真的|自己|本人|現在|平常|本來|原來][叫什麼|叫什麼名字|叫做什麼|叫啥|姓什麼|姓啥|名叫什麼|代表誰|扮演誰|扮演什麼|算是誰|是什麼身份|是什麼角色|是什麼來頭|是什麼來歷]',
    `{p}的${zhName}[|是什麼|為何|是啥|到底是什麼|究竟是什麼|叫什麼|是哪個]`,
    `${zhHow}[稱呼{p}|叫{p}|喊{p}|稱{p}|介紹{p}]`,
    '[|該|要|應該|可以|大家|別人|平常|以後|人家][叫{p}什麼|稱{p}什麼|喊{p}什麼|管{p}叫什麼]',
    '[|到底|究竟|請說說][誰是{p}|誰才是{p}|誰叫{p}|{p}就是誰]',
    `[|正在|剛剛|現在|一直][跟|和|與|同]{q}${zhTalk}的[是誰|人是誰|是哪位|是什麼人|到底是誰|人叫什麼]`,
    `{q}[|到底|究竟|正|現在|剛剛|一直][在|是在][跟|和|與|同]誰${zhTalk}`,
    `[|是|究竟是|到底是][誰在|誰正在|哪位在][跟|和|與|同]{q}${zhTalk}`,
    '{q}[說話|聊天|對話|交談|溝通|討論]的[對象是誰|對象叫什麼|人是誰]',
    '{q}[對面|面前|眼前|前面]的[是誰|人是誰|是哪位|到底是誰]',
    `[介紹|說說|談談|聊聊|講講|描述|說明|形容|說一下|介紹一下|簡單說說]{p}[|自己|這個人|的一切]`,
    `[說說|談談|講講|說明|說一下|說出|回答|寫下|重複]{p}${zhWho}`,
    `[說說|談談|講講|說明|說一下|說出|回答|寫下|重複]{p}的${zhName}`,
    `你${zhKnow}{p}${zhWho}[|嗎]`,
    `你${zhKnow}{p}的${zhName}[|嗎]`,
  ],
  en: [
    '[who|who exactly|who really|who actually|who on earth|who then|and who|just who|so who] {be}[| really| exactly| actually| again| then| anyway| today]',
    'who [might|could|would|can|should|may] {sub} [be|really be|possibly be]',
    'who do {sub} [claim to be|pretend to be|represent|think {is}|say {is}|speak for]',
    'what {be} [called|named|known as|usually called|really called]',
    `[what is|what's|what exactly is|what was] {pos} ${enName}`,
    `[tell me|say|state|give me|share|reveal|write|spell out|repeat|mention|announce|remind me of] {pos} ${enName}`,
    `${enTell} [who {is}|who {is} exactly|who {is} really|what {is} called|what {pos} name is]`,
    'what [do|would|did|should|can|could] [people|others|they|friends|we|folks|users] call {obj}',
    '[what|how] [should|can|may|do|shall|could|must] {qsub} [call|address|name|greet|refer to] {obj}',
    `[who|who exactly|and who|with whom|just who] {qbe} ${enTalk}[| right now| here| today| now| exactly]`,
    `[who is|who's|who exactly is|and who is] [|this |that |currently |really ]${enTalk} {q}`,
    '[introduce|describe|present|identify|name|characterize] {self}[| briefly| in one line| to everyone| please]',
    '[tell me about|say something about|give me a line about|say a word about] {self}',
    '[do you know|do you remember|do you recall|can you guess|can you tell me|can you say|can you work out] [who {is}|what {is} called]',
    `[do you know|do you remember|do you recall|can you guess|can you tell me|can you say|can you work out] {pos} ${enName}`,
  ],
  ja: [
    '{p}は[|一体|本当は|実は|結局][誰|誰ですか|誰なの|誰なんですか|どなたですか|何者|何者ですか|どちら様ですか|誰でしょうか]',
    '{p}[って|とは][誰|誰ですか|何者|何者ですか|誰なの|どなたですか]',
    '{p}の[名前|本名|正体|呼び名|肩書き|役割|お名前|フルネーム]は[|何|何ですか|何でしょうか|なに]',
    '{p}の[名前|本名|正体|呼び名|肩書き|役割]を[教えて|教えてください|言って|言ってください|聞かせて|知りたい|答えて]',
    '{p}は[何と呼ばれていますか|何という名前ですか|なんて名前|何と言いますか]',
    '{p}が[誰か|誰なのか|何者か][教えて|教えてください|言って|答えて|知りたい|説明して]',
    '{p}を[何と呼べばいい|どう呼べばいい|紹介して|紹介してください|説明して]',
    '[今|][{q}と話しているのは誰|{q}と話しているのは誰ですか|{q}の相手は誰|{q}は誰と話しているの|{q}は誰と話していますか]',
  ],
  ko: [
    '{p} [|대체 |도대체 |정말 |사실 |원래 |지금 ][누구야|누구니|누구입니까|누구예요|누구인가요|누구지|누구죠|뭐하는 사람이야]',
    '{pos} [이름|본명|별명|정체|직함|역할|신분][은|이] [뭐야|뭐니|뭐예요|뭔가요|무엇입니까|뭐지]',
    '{pos} [이름|본명|별명|정체|신분]을 [말해줘|알려줘|말해 봐|가르쳐줘|말씀해 주세요|대답해줘]',
    '{is} [누구인지|누군지|어떤 사람인지] [말해줘|알려줘|말해 봐|가르쳐줘|설명해줘|대답해줘]',
    '{obj} [소개해줘|소개해 봐|설명해줘|뭐라고 불러|어떻게 불러|뭐라고 부르면 돼]',
    '{q} [말하는|대화하는|이야기하는|채팅하는] 사람은 [누구야|누구니|누구입니까|누구예요]',
  ],
}

/** About the model alone. */
export const modelFrames: Frames = {
  zh: [
    '[|來個|做個|先做個|來一段][自我介紹|簡單的自我介紹|簡短的自我介紹][|一下|吧]',
    '[|先|快][報上|報一下|說一下|說出|講一下|交代|表明|亮出|告知][你的名字|你的名號|你的身份|你的來歷|名字|姓名|名號|身份]',
    '[|正在|剛才|現在][回答|回覆|回應|幫|幫助|協助|服務|陪伴|接待]我的[是誰|是哪位|人是誰|到底是誰]',
    '[|是|到底是][誰在|誰正在][回答|回覆|回應|幫助|協助|服務]我',
    '你[知道|清楚|記得|明白|說得出]自己[是誰|叫什麼|的名字|的身份|是什麼人][|嗎]',
  ],
  en: [
    'who is [answering|helping|assisting|serving|replying to|responding to|advising] me[| here| now| today]',
    '[|please ][give|make|do|write] [a self introduction|a short self introduction|an introduction of yourself]',
    'what [kind of assistant|sort of bot|model|system|program] are you',
  ],
  ja: [
    '[簡単に|短く|まず|一言で|][自己紹介して|自己紹介してください|自己紹介をして|自己紹介をお願いします|名乗って|名乗ってください]',
  ],
  ko: ['[먼저 |짧게 |간단히 |한마디로 |][자기소개 해봐|자기소개 부탁해|자기소개를 해줘|자기소개 해주세요|이름을 대]'],
}

/** About the user alone. */
export const userFrames: Frames = {
  zh: [
    `${zhGuess}我${zhWho}`,
    `${zhGuess}我的${zhName}`,
    '[|正在|剛才|現在][問|找|叫|使用|請教|拜託|詢問|打擾|麻煩|考]你的[是誰|是哪位|人是誰|到底是誰]',
    '[|是|到底是][誰在|誰正在][問|找|叫|使用|請教|詢問]你',
    '你[|真的|到底|究竟|還|應該][認識|認得|認得出|見過|聽過|記得|了解|熟悉|知道][我|我這個人][嗎|吧]',
    '你[知道|清楚|記得|明白|說得出]我自己[是誰|叫什麼|的名字|的身份|是什麼人][|嗎]',
  ],
  en: [
    '[guess|try to guess|please guess|work out|figure out] [who I am|what I am called]',
    `[guess|try to guess|please guess|work out|figure out] my ${enName}`,
    'do you [know|remember|recognize|recall|still know|really know|still remember] me[| at all| by now| from before]',
    'have [you|we] [met|seen me|heard of me|talked to me] before',
    'who is [asking|questioning|using|interviewing|testing|bothering] you[| here| now| today]',
  ],
  ja: [
    '{p}を[覚えていますか|知っている|覚えている|認識できますか|ご存じですか|知ってる]',
    '{p}が誰か[分かる|知っていますか|知ってる|当てて|当ててみて|言えますか|覚えていますか]',
  ],
  ko: [
    '{obj} [기억해|기억하니|아니|아세요|알고 있어|알아보겠어|기억하세요]',
    '{is} [누구인지|누군지] [알겠어|아니|아세요|맞혀 봐|맞혀봐|기억해|짐작해 봐]',
  ],
}

/** About a topic `{t}`; some have who and both pronouns. */
export const topicFrames: Partial<Frames> = {
  zh: [
    '[談談|聊聊|說說|講講|解釋|說明|介紹|描述|簡介|分析|討論|講解|總結|評論|概述][|一下]{t}',
    '[請|幫我|跟我|替我|給我][解釋|說明|介紹|講講|整理|描述|總結]{t}[|的重點|的概念|的特色]',
    '{t}[是什麼|是什麼東西|是指什麼|是什麼意思|有什麼用|有什麼好處|有什麼特色|怎麼來的|為什麼重要|重要嗎|難嗎|好不好|怎麼樣]',
    '[你|你們|您][知道|了解|懂|喜歡|聽過|討厭|研究過|怎麼看|怎麼想]{t}[|嗎]',
    '我[想了解|想學|想聽聽|不懂|不太懂|很喜歡|想問]{t}[|的事|的內容]',
    '[誰發明了|誰發現了|誰喜歡|誰研究|誰負責|誰最懂|誰提出了]{t}',
    '{t}[是誰發明的|是誰發現的|是誰提出的|是誰的|跟我有什麼關係|跟你有什麼關係|對我有什麼用|對你來說是什麼]',
    '[你的|我的]{t}[是什麼|怎麼樣|在哪裡|有問題嗎]',
  ],
  en: [
    '[what is|what exactly is|what was|where is|how good is|what does it mean,] {t}',
    '[tell me about|tell me something about|tell me more about|talk about|explain|describe|summarize|outline|define|introduce|discuss] {t}[| briefly| to me| in one line]',
    'who [invented|discovered|likes|studies|needs|owns] {t}',
    '[do you|do I|can you|should I] [like|know|understand|need|use|explain] {t}',
    'what [should I|do you|can you] [know about|think of|say about|tell me about] {t}',
  ],
}
